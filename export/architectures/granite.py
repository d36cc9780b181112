"""Granite 3 (dense): Llama with four multipliers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import UnsupportedModelError
from edgepack.export.architectures.llama import FAMILY as LLAMA
from edgepack.export.rules.family import Family
from edgepack.export.rules.metadata import PLAIN_ROPE, common_metadata
from edgepack.gguf.types import Value, f32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig

_SCALES = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


def _metadata(config: ModelConfig) -> dict[str, Value]:
    scales = {f"granite.{ours}": _scale(config, theirs) for ours, theirs in _SCALES.items()}
    return common_metadata(config, "granite", rope_types=(*PLAIN_ROPE, "llama3")) | scales


def _scale(config: ModelConfig, key: str) -> Value:
    value = config.number(key, default=1.0)
    if value <= 0:
        raise UnsupportedModelError(f"{config.label}: {key} is {value}: llama.cpp takes zero for an absent key")
    return f32(value)


FAMILY = Family(
    name="granite",
    classes=("GraniteForCausalLM",),
    defaults=LLAMA.defaults,
    metadata=_metadata,
    computed=LLAMA.computed,
    requirements=LLAMA.requirements,
    tensors=LLAMA.tensors,
)
