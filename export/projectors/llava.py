"""LLaVA: SigLIP's patches behind one of the last blocks, through two matrices; with Pixtral's tower it is `pixtral`.

With CLIP's tower it is refused. The graph of the installed llama.cpp puts the class token behind the patches and reads
from the second row on, as if it stood before them: the first patch is lost and the class token stands in the last
one's place, whatever a file says (`clip_graph_llava::build`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import UnsupportedModelError
from edgepack.export.projectors.pixtral import PIXTRAL
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
from edgepack.gguf.types import Value, ValueType, array

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rules.family import Family

_PROJECTOR = "model.multi_modal_projector."


def _by_tower(config: ModelConfig) -> Family | None:
    """Which tower it is."""
    tower = config.get("model_type") or "clip_vision_model"  # as transformers
    if tower == "pixtral":
        return PIXTRAL
    if tower == "siglip_vision_model":
        return None
    reason = (
        "its graph leaves out the first patch of a tower with a class token"
        if tower == "clip_vision_model"
        else "it has no projector with another tower"
    )
    raise UnsupportedModelError(
        f"{config.label}: model_type is {tower!r}: the installed llama.cpp needs 'siglip_vision_model' or 'pixtral',"
        f" because {reason}"
    )


def _metadata(config: ModelConfig) -> dict[str, Value]:
    keys = clip_keys(config, "mlp", config.number("layer_norm_eps"), activation_of(config, ("gelu",)))
    return keys | {"clip.vision.feature_layer": array(ValueType.INT32, [_feature_layer(config)])}


def _feature_layer(config: ModelConfig) -> int:
    """How many blocks an image goes through: of -2 all but the last."""
    layer = config.get("vision_feature_layer")
    blocks = config.n_layers
    if type(layer) is not int or not -blocks <= layer <= blocks:
        raise UnsupportedModelError(
            f"{config.label}: vision_feature_layer is {layer!r}: llama.cpp needs the number of one block, because its"
            " projector reads one"
        )
    return layer if layer >= 0 else blocks + 1 + layer


PROJECTOR = Projector(
    name="mlp",
    classes=("LlavaForConditionalGeneration",),
    instead=_by_tower,
    lifted=("vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act"),
    defaults={
        **SIGLIP_DEFAULTS,
        **HALF,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    },
    metadata=_metadata,
    dimensions=tower_dimensions,
    requirements=(
        THREE_CHANNELS,
        Requirement("vision_feature_select_strategy", ("full",), "its graph keeps every patch of this tower"),
        Requirement("projector_hidden_act", ("gelu",), "its projector has GELU"),
    ),
    renames=TOWER_NAMES,
    tensors=(
        # What is read lies before the tower's last norm.
        *(rule for rule in siglip_rules("model.vision_tower.") if not rule.target.startswith("v.post_ln.")),
        TensorRule("mm.0.weight", _PROJECTOR + "linear_1.weight", "t d"),
        TensorRule("mm.0.bias", _PROJECTOR + "linear_1.bias", "t"),
        TensorRule("mm.2.weight", _PROJECTOR + "linear_2.weight", "t t"),
        TensorRule("mm.2.bias", _PROJECTOR + "linear_2.bias", "t"),
    ),
)
