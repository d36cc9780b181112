"""Qwen 2 VL and 2.5 VL: patches of two frames, rope over both sides, squares of four patches joined behind a norm.

Windows of 2.5's attention are of 112 pixels, which the graph takes for granted; every n-th block sees all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgepack.errors import UnsupportedModelError
from edgepack.export.rules.family import Requirement, TensorRule
from edgepack.export.rules.projector import (
    CLIP_COLOURS,
    LAYER_SHAPES,
    TWO_FRAMES,
    Projector,
    activation_of,
    clip_keys,
    layer_rules,
    tower_dimensions,
)
from edgepack.export.rules.vision_rows import frame_rules, split_rules
from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig

_BLOCK = "model.visual.blocks.{i}."
_EPS = 1e-6  # fixed in transformers' modeling_qwen2_vl.py
_GRID = {"image_size": 560}  # llama.cpp's converter: sizes are free, the number is of no consequence
_MERGER = (
    TensorRule("v.post_ln.weight", "model.visual.merger.ln_q.weight", "d"),
    TensorRule("mm.0.weight", "model.visual.merger.mlp.0.weight", "4d 4d"),
    TensorRule("mm.0.bias", "model.visual.merger.mlp.0.bias", "4d"),
    TensorRule("mm.2.weight", "model.visual.merger.mlp.2.weight", "t 4d"),
    TensorRule("mm.2.bias", "model.visual.merger.mlp.2.bias", "t"),
)


def _dimensions(config: ModelConfig) -> dict[str, int]:
    return tower_dimensions(config) | {"4d": 4 * config.hidden}


def _second(config: ModelConfig) -> dict[str, Any]:
    """Qwen 2 VL calls the tower's width `embed_dim` and the model's `hidden_size`."""
    width = config.count("embed_dim")
    return {
        "hidden_size": width,
        "intermediate_size": int(width * config.number("mlp_ratio")),
    }


def _metadata(config: ModelConfig) -> dict[str, Value]:
    activation = activation_of(config, ("quick_gelu",))
    return clip_keys(config, "qwen2vl_merger", _EPS, None if activation == "quick_gelu" else activation)


def _metadata_2_5(config: ModelConfig) -> dict[str, Value]:
    keys = clip_keys(config, "qwen2.5vl_merger", _EPS, activation_of(config, ("silu",)))
    return keys | {"clip.vision.n_wa_pattern": u32(_period(config))}


def _period(config: ModelConfig) -> int:
    """Every how manyth block sees all; the list must say so."""
    found = config.get("fullatt_block_indexes")
    indexes = list(found) if isinstance(found, list | tuple) else []
    if not indexes or not all(type(each) is int for each in indexes) or indexes[0] < 0:
        raise UnsupportedModelError(f"{config.label}: fullatt_block_indexes: expected numbers of blocks, got {found!r}")
    period = int(indexes[0]) + 1
    if indexes != list(range(period - 1, config.n_layers, period)):
        raise UnsupportedModelError(
            f"{config.label}: fullatt_block_indexes is {indexes!r}: llama.cpp needs every {period}th block, because its"
            " graph counts them so"
        )
    return period


_SPELLINGS = {"num_hidden_layers": "depth", "num_attention_heads": "num_heads"}
_MERGE = Requirement("spatial_merge_size", (2,), "its graph joins squares of four patches")

SECOND = Projector(
    name="qwen2vl_merger",
    classes=("Qwen2VLForConditionalGeneration",),
    spellings=_SPELLINGS,
    defaults={
        "num_hidden_layers": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_attention_heads": 16, "patch_size": 14,
        "hidden_act": "quick_gelu", **_GRID, **CLIP_COLOURS,
    },
    derived=_second,
    metadata=_metadata,
    dimensions=_dimensions,
    requirements=(*TWO_FRAMES, _MERGE),
    tensors=(
        *frame_rules("model.visual.patch_embed.proj.weight"),
        *split_rules(_BLOCK + "attn.qkv"),
        *layer_rules(
            _BLOCK,
            {"ln1": "norm1", "ln2": "norm2", "attn_out": "attn.proj", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"},
            LAYER_SHAPES,
        ),
        *_MERGER,
        TensorRule("v.post_ln.bias", "model.visual.merger.ln_q.bias", "d"),
    ),
)  # fmt: skip
SECOND_AND_HALF = replace(
    SECOND,
    name="qwen2.5vl_merger",
    classes=("Qwen2_5_VLForConditionalGeneration",),
    defaults={
        "num_hidden_layers": 32, "hidden_size": 3584, "intermediate_size": 3420, "num_attention_heads": 16,
        "patch_size": 14, "hidden_act": "silu", "fullatt_block_indexes": [7, 15, 23, 31], **_GRID, **CLIP_COLOURS,
    },
    derived=lambda _config: {},
    metadata=_metadata_2_5,
    requirements=(*TWO_FRAMES, _MERGE, Requirement("window_size", (112,), "its graph's windows are so wide")),
    tensors=(
        *frame_rules("model.visual.patch_embed.proj.weight"),
        *split_rules(_BLOCK + "attn.qkv"),
        *layer_rules(_BLOCK, {"ln1": "norm1", "ln2": "norm2"}, LAYER_SHAPES, bias=False),
        *layer_rules(
            _BLOCK,
            {
                "attn_out": "attn.proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
                "ffn_down": "mlp.down_proj",
            },
            LAYER_SHAPES,
        ),
        *_MERGER,
    ),
)  # fmt: skip

PROJECTORS = (SECOND, SECOND_AND_HALF)
