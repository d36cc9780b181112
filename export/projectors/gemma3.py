"""Gemma 3: SigLIP, squares of patches averaged, a norm, one matrix that stands transposed."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

from edgepack.errors import UnsupportedModelError
from edgepack.export.rules.decoder import plus_one
from edgepack.export.rules.family import TensorRule
from edgepack.export.rules.projector import (
    HALF,
    SIGLIP_DEFAULTS,
    SIGLIP_FLOATS,
    THREE_CHANNELS,
    TOWER_NAMES,
    Projector,
    activation_of,
    clip_keys,
    siglip_rules,
    tower_dimensions,
)
from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig


def _metadata(config: ModelConfig) -> dict[str, Value]:
    keys = clip_keys(config, "gemma3", config.number("layer_norm_eps"), activation_of(config, ("gelu",)))
    return keys | {"clip.vision.projector.scale_factor": u32(_pooled(config))}


def _pooled(config: ModelConfig) -> int:
    """Patches of a side of a square that becomes one token; the grid must come out even."""
    patches, tokens = config.count("image_size") // config.count("patch_size"), config.count("mm_tokens_per_image")
    side = isqrt(tokens)
    if side * side != tokens or patches % side:
        raise UnsupportedModelError(
            f"{config.label}: mm_tokens_per_image is {tokens}: llama.cpp needs a square that divides {patches} patches"
            " a side, because it averages squares of patches"
        )
    return patches // side


PROJECTOR = Projector(
    name="gemma3",
    classes=("Gemma3ForConditionalGeneration",),
    lifted=("mm_tokens_per_image",),
    defaults={**SIGLIP_DEFAULTS, "mm_tokens_per_image": 256, **HALF},
    metadata=_metadata,
    dimensions=tower_dimensions,
    requirements=(THREE_CHANNELS,),
    renames=TOWER_NAMES,
    floats=SIGLIP_FLOATS,
    halves=(r"^mm\.input_projection\.",),  # transposed by the graph, which blocks cannot be
    tensors=(
        *siglip_rules("model.vision_tower."),
        TensorRule("mm.input_projection.weight", "model.multi_modal_projector.mm_input_projection_weight", "d t"),
        TensorRule("mm.soft_emb_norm.weight", "model.multi_modal_projector.mm_soft_emb_norm.weight", "d", plus_one),
    ),
)
