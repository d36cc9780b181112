"""LFM 2 VL: SigLIP 2, positions scaled to the image, squares of patches joined, two matrices behind a norm."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, Any

from edgepack.errors import UnsupportedModelError
from edgepack.export.rules.family import Requirement, TensorRule
from edgepack.export.rules.projector import (
    HALF,
    SIGLIP_DEFAULTS,
    THREE_CHANNELS,
    TOWER_NAMES,
    Projector,
    activation_of,
    clip_keys,
    siglip_rules,
    tower_dimensions,
)
from edgepack.export.rules.vision_rows import patches_by_pixel
from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig

_PROJECTOR = "model.multi_modal_projector."


def _size(config: ModelConfig) -> dict[str, Any]:
    """The image for which every position is learned; the last blocks may be left out (`vision_feature_layer`)."""
    blocks, layer = config.n_layers, config.get("vision_feature_layer")
    if layer is None:
        layer = -1
    if type(layer) is not int or not -blocks <= layer < 0:
        raise UnsupportedModelError(
            f"{config.label}: vision_feature_layer is {layer!r}: llama.cpp needs a block counted from the last, because"
            " it has the blocks before it alone"
        )
    return {
        "num_hidden_layers": blocks + 1 + layer,
        "image_size": isqrt(config.count("num_patches")) * config.count("patch_size"),
    }


def _dimensions(config: ModelConfig) -> dict[str, int]:
    sizes = tower_dimensions(config)
    joined = sizes["d"] * config.count("downsample_factor") ** 2
    return sizes | {"n": config.count("num_patches"), "joined": joined, "m": config.count("projector_hidden_size")}


def _metadata(config: ModelConfig) -> dict[str, Value]:
    keys = clip_keys(config, "lfm2", config.number("layer_norm_eps"), activation_of(config, ("gelu",)))
    return keys | {"clip.vision.projector.scale_factor": u32(config.count("downsample_factor"))}


PROJECTOR = Projector(
    name="lfm2",
    classes=("Lfm2VlForConditionalGeneration",),
    lifted=("downsample_factor", "projector_hidden_size", "projector_hidden_act", "vision_feature_layer"),
    defaults={
        **SIGLIP_DEFAULTS,
        **HALF,
        "num_patches": 256,
        "downsample_factor": 2,
        "projector_hidden_size": 2560,
        "projector_hidden_act": "gelu",
    },
    derived=_size,
    metadata=_metadata,
    dimensions=_dimensions,
    requirements=(
        THREE_CHANNELS,
        Requirement("projector_hidden_act", ("gelu",), "its projector has GELU"),
        Requirement("projector_bias", (True,), "its projector has biases"),
    ),
    renames=TOWER_NAMES,
    tensors=(
        *siglip_rules("model.vision_tower.", patches_by_pixel),
        TensorRule("mm.input_norm.weight", _PROJECTOR + "layer_norm.weight", "joined", optional=True),
        TensorRule("mm.input_norm.bias", _PROJECTOR + "layer_norm.bias", "joined", optional=True),
        TensorRule("mm.1.weight", _PROJECTOR + "linear_1.weight", "m joined"),
        TensorRule("mm.1.bias", _PROJECTOR + "linear_1.bias", "m"),
        TensorRule("mm.2.weight", _PROJECTOR + "linear_2.weight", "t m"),
        TensorRule("mm.2.bias", _PROJECTOR + "linear_2.bias", "t"),
    ),
)
