"""Mistral 7B and Nemo, which share Llama's graph.

The graph has no sliding window, so the context ends where one would begin to matter: within it every layer
sees all that came before, as it does in transformers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.export.architectures.llama import FAMILY as LLAMA
from edgepack.export.rules.metadata import attention_window, common_metadata

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "llama", window=attention_window(config))


FAMILY = replace(
    LLAMA,
    classes=("MistralForCausalLM",),
    defaults={
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    metadata=_metadata,
)
