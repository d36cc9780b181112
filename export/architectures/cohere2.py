"""Cohere 2 (Command R7B, Command A): attention and feed-forward side by side, rope in sliding layers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import (
    EQUAL_HEADS,
    NO_ATTENTION_BIAS,
    SILU,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    norm_rules,
)
from edgepack.export.rules.family import Family, Requirement
from edgepack.export.rules.metadata import common_metadata, sliding_metadata
from edgepack.gguf.types import Value, f32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig


def _metadata(config: ModelConfig) -> dict[str, Value]:
    keys = sliding_metadata(config, 4) | {"logit_scale": f32(config.number("logit_scale"))}
    common = common_metadata(config, "cohere2", epsilon="layer_norm_eps")
    return common | {f"cohere2.{key}": value for key, value in keys.items()}


FAMILY = Family(
    name="cohere2",
    classes=("Cohere2ForCausalLM",),
    defaults={
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "sliding_window": 4096,
        "logit_scale": 0.0625,
        "tie_word_embeddings": True,
    },
    metadata=_metadata,
    requirements=(
        SILU,
        WHOLE_HEADS,
        EQUAL_HEADS,
        NO_ATTENTION_BIAS,
        Requirement("tie_word_embeddings", (True,), "its graph takes the embedding as the head"),
        Requirement("use_qk_norm", (False,), "its graph has no norms on queries and keys"),
    ),
    tensors=(
        *embedding_rules(),
        *norm_rules({"attn_norm": "input_layernorm"}),
        *attention_rules(bias=False),
        *feed_forward_rules(),
    ),
)
