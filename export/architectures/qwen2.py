"""Qwen 1.5, 2 and 2.5. Where a sliding window is switched on, the context ends before it would matter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import (
    EQUAL_HEADS,
    LLAMA_NORMS,
    SILU,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    norm_rules,
)
from edgepack.export.rules.family import Family
from edgepack.export.rules.metadata import attention_window, common_metadata

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "qwen2", window=attention_window(config))


FAMILY = Family(
    name="qwen2",
    classes=("Qwen2ForCausalLM", "Qwen2Model"),
    defaults={
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
    },
    metadata=_metadata,
    headless=True,
    renames=(("model.", ""),),  # saved without a head
    requirements=(SILU, WHOLE_HEADS, EQUAL_HEADS),
    tensors=(*embedding_rules(), *norm_rules(LLAMA_NORMS), *attention_rules(), *feed_forward_rules()),
)
