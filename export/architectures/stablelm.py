"""StableLM 1, 2 and 2 12B: LayerNorms, rope on a part of each head; the 12B has norms of every head of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.backwards import Backwards
from edgepack.export.rules.decoder import (
    EQUAL_HEADS,
    LAYER,
    SILU,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    tied_head_copy,
)
from edgepack.export.rules.family import Family, TensorRule
from edgepack.export.rules.metadata import common_metadata

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rules.backwards import Header, Settings
    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "stablelm", rope_types=("default", "dynamic", "linear"), epsilon="layer_norm_eps")


def _in_turn(config: ModelConfig, _layer: int) -> bool:
    return not config.flag("use_parallel_residual")


def _normed_heads(config: ModelConfig, _layer: int) -> bool:
    return config.flag("qk_layernorm")


def _settings(header: Header) -> Settings:
    return {"use_parallel_residual": not header.has(".ffn_norm.")}


FAMILY = Family(
    name="stablelm",
    classes=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    spellings={"layer_norm_eps": "norm_eps", "partial_rotary_factor": "rope_pct"},
    defaults={
        "num_key_value_heads": 32,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "partial_rotary_factor": 0.25,
    },
    metadata=_metadata,
    backwards=Backwards(_settings),
    requirements=(SILU, EQUAL_HEADS),
    tensors=(
        *embedding_rules(),
        TensorRule("output_norm.bias", "model.norm.bias", "d"),
        tied_head_copy(),
        *(
            TensorRule(f"blk.{{i}}.attn_norm.{kind}", f"{LAYER}input_layernorm.{kind}", "d")
            for kind in ("weight", "bias")
        ),
        *(
            TensorRule(f"blk.{{i}}.ffn_norm.{kind}", f"{LAYER}post_attention_layernorm.{kind}", "d", when=_in_turn)
            for kind in ("weight", "bias")
        ),
        *attention_rules(),
        TensorRule(
            "blk.{i}.attn_q_norm.weight",
            LAYER + "self_attn.q_layernorm.norms.{h}.weight",
            "heads h",
            when=_normed_heads,
        ),
        TensorRule(
            "blk.{i}.attn_k_norm.weight",
            LAYER + "self_attn.k_layernorm.norms.{k}.weight",
            "kv_heads h",
            when=_normed_heads,
        ),
        *feed_forward_rules(),
    ),
)
