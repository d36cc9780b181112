"""Qwen 3: Qwen 2 with a norm on every query and key head, and heads of any width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import (
    LLAMA_NORMS,
    NO_ATTENTION_BIAS,
    SILU,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    head_norm_rules,
    norm_rules,
)
from edgepack.export.rules.family import Family
from edgepack.export.rules.metadata import attention_window, common_metadata

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "qwen3", window=attention_window(config))


FAMILY = Family(
    name="qwen3",
    classes=("Qwen3ForCausalLM",),
    defaults={
        "num_key_value_heads": 32,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
    },
    metadata=_metadata,
    requirements=(SILU, WHOLE_HEADS, NO_ATTENTION_BIAS),
    tensors=(
        *embedding_rules(),
        *norm_rules(LLAMA_NORMS),
        *attention_rules(bias=False),
        *head_norm_rules(),
        *feed_forward_rules(),
    ),
)
