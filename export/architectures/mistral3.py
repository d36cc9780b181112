"""Ministral 3 and the text part of what sees with it: Llama with yarn, and attention that sharpens with the position.

The graph has no sliding window: the context ends where one would begin to matter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.export.architectures.llama import FAMILY as LLAMA
from edgepack.export.rules.backwards import Backwards
from edgepack.export.rules.metadata import attention_window, common_metadata
from edgepack.export.rules.rope_backwards import rope_settings
from edgepack.export.rules.rope_factors import rope_number
from edgepack.export.rules.text_part import text_part
from edgepack.gguf.types import Value, f32, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rules.backwards import Header, Settings


def _metadata(config: ModelConfig) -> dict[str, Value]:
    rope = config.rope
    # Queries at position p are multiplied by 1 + scale · ln(1 + ⌊p / original context⌋).
    keys = {
        "attention.temperature_scale": f32(rope_number(rope, "llama_4_scaling_beta", config)),
        "rope.scaling.original_context_length": u32(int(rope_number(rope, "original_max_position_embeddings", config))),
    }
    common = common_metadata(config, "mistral3", window=attention_window(config), yarn_betas=True)
    return common | {f"mistral3.{key}": value for key, value in keys.items()}


def _settings(header: Header) -> Settings:
    found = rope_settings(header, header.count("attention.key_length"))
    return {
        "rope_parameters": {
            **found,
            "original_max_position_embeddings": header.count("rope.scaling.original_context_length"),
            "llama_4_scaling_beta": header.get("attention.temperature_scale"),
        }
    }


FAMILY = replace(
    LLAMA,
    name="mistral3",
    classes=("Ministral3ForCausalLM",),
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 262144,
    },
    metadata=_metadata,
    backwards=Backwards(_settings),
)
WITH_EYES = text_part(FAMILY, "Mistral3ForConditionalGeneration")  # known by its text part: see `mistral`
