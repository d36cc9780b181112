"""Idefics 3 and SmolVLM: SigLIP, patches of a square joined into one (`pixel_shuffle`), one matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import CheckpointError
from edgepack.export.rules.family import TensorRule
from edgepack.export.rules.projector import (
    HALF,
    SIGLIP_FLOATS,
    THREE_CHANNELS,
    Projector,
    activation_of,
    clip_keys,
    preprocessor,
    siglip_rules,
    tower_dimensions,
)
from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig


def _dimensions(config: ModelConfig) -> dict[str, int]:
    sizes = tower_dimensions(config)
    return sizes | {"joined": sizes["d"] * config.count("scale_factor") ** 2}


def _metadata(config: ModelConfig) -> dict[str, Value]:
    keys = clip_keys(config, "idefics3", config.number("layer_norm_eps"), activation_of(config, ("gelu",)))
    return keys | {
        "clip.vision.projector.scale_factor": u32(config.count("scale_factor")),
        "clip.vision.preproc_image_size": u32(_longest_edge(config)),
    }


def _longest_edge(config: ModelConfig) -> int:
    """To what an image is scaled before it is cut into squares; the tower's size cuts none."""
    size = preprocessor(config).get("size", {})
    edge = size.get("longest_edge", config.count("image_size")) if isinstance(size, dict) else size
    if type(edge) is not int or not 0 < edge < 2**20:
        raise CheckpointError(f"preprocessor_config.json: size.longest_edge: expected a positive integer, got {edge!r}")
    return edge


PROJECTOR = Projector(
    name="idefics3",
    classes=("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration"),
    lifted=("scale_factor",),
    defaults={
        "hidden_size": 1152,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "scale_factor": 2,
        **HALF,
    },
    metadata=_metadata,
    dimensions=_dimensions,
    requirements=(THREE_CHANNELS,),
    floats=SIGLIP_FLOATS,
    tensors=(
        *siglip_rules("model.vision_model."),
        TensorRule("mm.model.fc.weight", "model.connector.modality_projection.proj.weight", "t joined"),
    ),
)
