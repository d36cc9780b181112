"""Mistral 7B, Nemo, Ministral 8B and the text part of Mistral Small 3.1, which share Llama's graph.

The graph has no sliding window, so the context ends where one would begin to matter: within it every layer
sees all that came before, as it does in transformers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.errors import UnsupportedModelError
from edgepack.export.architectures.llama import FAMILY as LLAMA
from edgepack.export.architectures.mistral3 import WITH_EYES as MINISTRAL_3
from edgepack.export.rules.metadata import attention_window, common_metadata
from edgepack.export.rules.text_part import text_part

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rules.family import Family
    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "llama", window=attention_window(config))


def _ministral_metadata(config: ModelConfig) -> dict[str, Value]:
    """Ministral 8B says layer by layer which of them slide; every layer does where it says nothing."""
    slides = "sliding_attention" in (config.get("layer_types") or ["sliding_attention"])
    return common_metadata(config, "llama", window=attention_window(config) if slides else None)


def _of_another_text(config: ModelConfig) -> Family | None:
    """The wrapper of Mistral Small 3.1 is that of Ministral 3 too."""
    if config.model_type == "ministral3":
        return MINISTRAL_3
    if config.model_type not in ("mistral", "mistral3"):
        raise UnsupportedModelError(
            f"{config.label}: text_config.model_type is {config.model_type!r}: expected 'mistral' or 'ministral3'"
        )
    return None


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
WITH_EYES = text_part(FAMILY, "Mistral3ForConditionalGeneration", instead=_of_another_text)

FAMILIES = (FAMILY, MINISTRAL, WITH_EYES)
