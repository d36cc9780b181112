"""Seed-OSS: Llama's graph with rope on halves, biases on queries, keys and values, and heads of any width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import (
    SILU,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    norm_rules,
)
from edgepack.export.rules.family import Family, Requirement
from edgepack.export.rules.metadata import common_metadata

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "seed_oss")


FAMILY = Family(
    name="seed_oss",
    classes=("SeedOssForCausalLM",),
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 524288,
    },
    metadata=_metadata,
    requirements=(
        SILU,
        WHOLE_HEADS,
        *(Requirement(key, (False,), "its graph has no such bias") for key in ("attention_out_bias", "mlp_bias")),
    ),
    tensors=(
        *embedding_rules(),
        *norm_rules({"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}),
        *attention_rules(),
        *feed_forward_rules(),
    ),
)
