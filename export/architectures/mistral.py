"""Mistral 7B, Nemo, Ministral 8B and the text part of Mistral Small 3.1, which share Llama's graph.

The graph has no sliding window, so the context ends where one would begin to matter: within it every layer
sees all that came before, as it does in transformers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.export.architectures.llama import FAMILY as LLAMA
from edgepack.export.metadata import attention_window, common_metadata
from edgepack.export.text_part import text_part

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig

    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "llama", window=attention_window(config))


def _ministral_metadata(config: ModelConfig) -> dict[str, Value]:
    """Ministral 8B says layer by layer which of them slide; every layer does where it says nothing."""
    slides = "sliding_attention" in (config.get("layer_types") or ["sliding_attention"])
    return common_metadata(config, "llama", window=attention_window(config) if slides else None)


FAMILY = replace(
    LLAMA,
    classes=("MistralForCausalLM", "MistralModel"),
    defaults={
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    metadata=_metadata,
)
MINISTRAL = replace(FAMILY, classes=("MinistralForCausalLM",), metadata=_ministral_metadata)
WITH_EYES = text_part(
    FAMILY, "Mistral3ForConditionalGeneration", applies=lambda config: config.model_type in ("mistral", "mistral3")
)

FAMILIES = (FAMILY, MINISTRAL, WITH_EYES)
