"""OLMoE: experts in every layer, and norms on queries and keys of all heads together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import (
    EQUAL_HEADS,
    LAYER,
    LLAMA_NORMS,
    NO_ATTENTION_BIAS,
    SILU,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    norm_rules,
    router_rule,
    tied_head_copy,
)
from edgepack.export.rules.experts import expert_rules
from edgepack.export.rules.family import Family, Requirement, TensorRule
from edgepack.export.rules.metadata import common_metadata

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "olmoe")


FAMILY = Family(
    name="olmoe",
    classes=("OlmoeForCausalLM",),
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "num_experts_per_tok": 8,
        "num_experts": 64,
    },
    metadata=_metadata,
    requirements=(
        SILU,
        WHOLE_HEADS,
        NO_ATTENTION_BIAS,
        EQUAL_HEADS,
        Requirement("clip_qkv", (), "its graph does not clip queries, keys and values"),
        Requirement("norm_topk_prob", (False,), "its graph leaves the chosen experts' weights as they are"),
        Requirement(
            "num_key_value_heads", lambda config: (config.n_heads,), "its graph has as many key heads as query heads"
        ),
    ),
    tensors=(
        *embedding_rules(),
        tied_head_copy(),
        *norm_rules(LLAMA_NORMS),
        *attention_rules(bias=False),
        TensorRule("blk.{i}.attn_q_norm.weight", LAYER + "self_attn.q_norm.weight", "d"),
        TensorRule("blk.{i}.attn_k_norm.weight", LAYER + "self_attn.k_norm.weight", "d"),
        router_rule(LAYER + "mlp.gate.weight"),
        *expert_rules(LAYER + "mlp.experts.", width="ff"),
    ),
)
