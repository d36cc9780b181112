"""Llama 1 to 3.3 and what shares its graph (Mistral 7B, SmolLM, TinyLlama …)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.family import Family, Requirement, TensorRule
from edgepack.export.metadata import common_metadata
from edgepack.export.permutations import interleave_keys, interleave_queries
from edgepack.export.rope_factors import llama3_factors
from edgepack.export.rows import ArrayRows

from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "llama") | {"llama.rope.dimension_count": u32(config.head_dim)}


def _rope_factors(config: ModelConfig) -> dict[str, Rows]:
    factors = llama3_factors(config, config.head_dim)
    return {} if factors is None else {"rope_freqs.weight": ArrayRows(factors)}


_LAYER = "model.layers.{i}."

FAMILY = Family(
    name="llama",
    classes=("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM"),
    metadata=_metadata,
    computed=_rope_factors,
    requirements=(
        Requirement("hidden_act", ("silu", "swish"), "its llama graph uses SiLU"),
        Requirement("sliding_window", (None,), "its llama graph attends to the whole context"),
    ),
    tensors=(
        TensorRule("token_embd.weight", "model.embed_tokens.weight", "v d"),
        TensorRule("output_norm.weight", "model.norm.weight", "d"),
        TensorRule("output.weight", "lm_head.weight", "v d"),
        TensorRule("blk.{i}.attn_norm.weight", _LAYER + "input_layernorm.weight", "d"),
        TensorRule("blk.{i}.attn_q.weight", _LAYER + "self_attn.q_proj.weight", "q d", interleave_queries),
        TensorRule("blk.{i}.attn_k.weight", _LAYER + "self_attn.k_proj.weight", "kv d", interleave_keys),
        TensorRule("blk.{i}.attn_v.weight", _LAYER + "self_attn.v_proj.weight", "kv d"),
        TensorRule("blk.{i}.attn_output.weight", _LAYER + "self_attn.o_proj.weight", "d q"),
        TensorRule("blk.{i}.attn_q.bias", _LAYER + "self_attn.q_proj.bias", "q", interleave_queries, optional=True),
        TensorRule("blk.{i}.attn_k.bias", _LAYER + "self_attn.k_proj.bias", "kv", interleave_keys, optional=True),
        TensorRule("blk.{i}.attn_v.bias", _LAYER + "self_attn.v_proj.bias", "kv", optional=True),
        TensorRule("blk.{i}.attn_output.bias", _LAYER + "self_attn.o_proj.bias", "d", optional=True),
        TensorRule("blk.{i}.ffn_norm.weight", _LAYER + "post_attention_layernorm.weight", "d"),
        TensorRule("blk.{i}.ffn_gate.weight", _LAYER + "mlp.gate_proj.weight", "ff d"),
        TensorRule("blk.{i}.ffn_up.weight", _LAYER + "mlp.up_proj.weight", "ff d"),
        TensorRule("blk.{i}.ffn_down.weight", _LAYER + "mlp.down_proj.weight", "d ff"),
        TensorRule("blk.{i}.ffn_gate.bias", _LAYER + "mlp.gate_proj.bias", "ff", optional=True),
        TensorRule("blk.{i}.ffn_up.bias", _LAYER + "mlp.up_proj.bias", "ff", optional=True),
        TensorRule("blk.{i}.ffn_down.bias", _LAYER + "mlp.down_proj.bias", "d", optional=True),
    ),
)
