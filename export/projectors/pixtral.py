"""Pixtral, Mistral Small 3.1 and Ministral 3: rope over both sides, rows of patches that end in a token of the text's.

That token, [IMG_BREAK], is taken from the model's own embedding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.errors import CheckpointError
from edgepack.export.rules.family import Requirement, TensorRule
from edgepack.export.rules.permutations import interleave_queries
from edgepack.export.rules.projector import (
    CLIP_COLOURS,
    LAYER_SHAPES,
    THREE_CHANNELS,
    TOWER_NAMES,
    Projector,
    activation_of,
    clip_keys,
    layer_rules,
    tower_dimensions,
)
from edgepack.export.rules.vision_rows import token_row
from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.export.config import ModelConfig

_BLOCK = "model.vision_tower.transformer.layers.{i}."
_EPS = 1e-5  # fixed in transformers' modeling_pixtral.py
_PROJECTOR = "model.multi_modal_projector."


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return clip_keys(config, "pixtral", _EPS, activation_of(config, ("gelu", "silu")))


def _merged_metadata(config: ModelConfig) -> dict[str, Value]:
    return _metadata(config) | {"clip.vision.spatial_merge_size": u32(config.count("spatial_merge_size"))}


def _merged_dimensions(config: ModelConfig) -> dict[str, int]:
    sizes = tower_dimensions(config)
    return sizes | {"joined": sizes["d"] * config.count("spatial_merge_size") ** 2}


def _text_eps(config: ModelConfig) -> Mapping[str, float]:
    """The norm behind the tower has the text model's epsilon in transformers, the tower's in llama.cpp."""
    text = config.values["text"]
    found = text.get("rms_norm_eps", _EPS)
    if not isinstance(found, int | float):
        raise CheckpointError(f"{config.label}: rms_norm_eps: expected a number, got {found!r}")
    return {"text_rms_norm_eps": float(found)}


def _break_rules(config: ModelConfig) -> tuple[TensorRule, ...]:
    """The embedding of [IMG_BREAK]."""
    return (token_row(config, "[IMG_BREAK]", "v.token_embd.img_break"),)


_REQUIREMENTS = (
    THREE_CHANNELS,
    Requirement("rope_parameters.rope_theta", (10000.0, 10000), "its graph has this base of rope"),
    Requirement("vision_feature_layer", (-1,), "its graph takes the last block's output"),
)
PIXTRAL = Projector(
    name="pixtral",
    classes=(),  # known by the tower inside LlavaForConditionalGeneration: see `llava`
    lifted=("vision_feature_layer",),
    defaults={
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 1024, "patch_size": 16, "hidden_act": "gelu", **CLIP_COLOURS,
    },
    metadata=_metadata,
    dimensions=tower_dimensions,
    requirements=_REQUIREMENTS,
    renames=TOWER_NAMES,
    listed=_break_rules,
    floats=(r"^v\.token_embd\.",),
    tensors=(
        TensorRule("v.patch_embd.weight", "model.vision_tower.patch_conv.weight", "d 3 p p"),
        TensorRule("v.pre_ln.weight", "model.vision_tower.ln_pre.weight", "d"),
        TensorRule("v.blk.{i}.attn_q.weight", _BLOCK + "attention.q_proj.weight", "d d", interleave_queries),
        TensorRule("v.blk.{i}.attn_k.weight", _BLOCK + "attention.k_proj.weight", "d d", interleave_queries),
        *layer_rules(
            _BLOCK,
            {
                "ln1": "attention_norm", "ln2": "ffn_norm", "attn_v": "attention.v_proj",
                "attn_out": "attention.o_proj", "ffn_gate": "feed_forward.gate_proj",
                "ffn_up": "feed_forward.up_proj", "ffn_down": "feed_forward.down_proj",
            },
            LAYER_SHAPES,
            bias=False,
        ),
        TensorRule("mm.1.weight", _PROJECTOR + "linear_1.weight", "t d"),
        TensorRule("mm.1.bias", _PROJECTOR + "linear_1.bias", "t", optional=True),
        TensorRule("mm.2.weight", _PROJECTOR + "linear_2.weight", "t t"),
        TensorRule("mm.2.bias", _PROJECTOR + "linear_2.bias", "t", optional=True),
    ),
)  # fmt: skip
MISTRAL = replace(
    PIXTRAL,
    classes=("Mistral3ForConditionalGeneration",),
    lifted=("vision_feature_layer", "spatial_merge_size"),
    defaults={**PIXTRAL.defaults, "image_size": 1540, "patch_size": 14, "hidden_act": "silu", "spatial_merge_size": 2},
    derived=_text_eps,
    metadata=_merged_metadata,
    dimensions=_merged_dimensions,
    requirements=(
        *_REQUIREMENTS,
        Requirement("text_rms_norm_eps", (_EPS,), "its graph has the tower's epsilon in the norm behind it too"),
    ),
    halves=(r"^v\.patch_embd\.weight", r"^mm\.patch_merger\."),
    tensors=(
        *PIXTRAL.tensors,
        TensorRule("mm.input_norm.weight", _PROJECTOR + "norm.weight", "d"),
        TensorRule("mm.patch_merger.weight", _PROJECTOR + "patch_merger.merging_layer.weight", "d joined"),
    ),
)

PROJECTORS = (PIXTRAL, MISTRAL)
