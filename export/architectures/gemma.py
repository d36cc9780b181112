"""Gemma 1: Llama's order of norms, GELU, heads of a width of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import (
    GELU,
    LLAMA_NORMS,
    NO_ATTENTION_BIAS,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    norm_rules,
    plus_one,
)
from edgepack.export.rules.family import Family, Requirement
from edgepack.export.rules.metadata import common_metadata

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "gemma")


FAMILY = Family(
    name="gemma",
    classes=("GemmaForCausalLM",),
    defaults={
        "num_key_value_heads": 16,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    metadata=_metadata,
    requirements=(
        # transformers takes the exact GELU of early files for the approximation too
        Requirement(("hidden_activation", "hidden_act"), GELU, "its graph uses GELU"),
        WHOLE_HEADS,
        NO_ATTENTION_BIAS,
        Requirement("tie_word_embeddings", (True,), "its graph has no head of its own"),
        Requirement("use_bidirectional_attention", (False,), "its graph is causal"),
    ),
    tensors=(
        *embedding_rules(plus_one),
        *norm_rules(LLAMA_NORMS, plus_one),
        *attention_rules(bias=False),
        *feed_forward_rules(),
    ),
)
