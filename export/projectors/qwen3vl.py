"""Qwen 3 VL and 3.5: as Qwen 2 VL with learned positions; what some blocks see goes into the model's first layers."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, Any

from edgepack.errors import CheckpointError
from edgepack.export.rules.family import Requirement, TensorRule
from edgepack.export.rules.projector import (
    HALF,
    LAYER_SHAPES,
    TWO_FRAMES,
    Projector,
    activation_of,
    clip_keys,
    layer_rules,
    tower_dimensions,
)
from edgepack.export.rules.vision_rows import frame_rules
from edgepack.gguf.types import Value, ValueType, array, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig

_BLOCK = "model.visual.blocks.{i}."
_EPS = 1e-6  # fixed in transformers' modeling_qwen3_vl.py
_DEEPSTACK = (8, 16, 24)  # transformers' default of Qwen 3 VL; Qwen 3.5 has none


def _size(config: ModelConfig) -> dict[str, Any]:
    """The image for which every position is learned: as many patches a side as the square root of the positions."""
    return {"image_size": isqrt(config.count("num_position_embeddings")) * config.count("patch_size")}


def _dimensions(config: ModelConfig) -> dict[str, int]:
    sizes = tower_dimensions(config)
    return sizes | {"n": config.count("num_position_embeddings"), "4d": 4 * config.hidden}


def _deepstack(config: ModelConfig) -> list[int]:
    """The blocks whose output is kept beside the last one's, in order."""
    default = _DEEPSTACK if config.architecture.startswith("Qwen3VL") else ()
    found = config.values.get("deepstack_visual_indexes", default)
    blocks = list(found) if isinstance(found, list | tuple) else None
    if blocks is None or not all(type(each) is int and 0 <= each < config.n_layers for each in blocks):
        raise CheckpointError(f"{config.label}: deepstack_visual_indexes: expected numbers of blocks, got {found!r}")
    if blocks != sorted(set(blocks)):
        raise CheckpointError(f"{config.label}: deepstack_visual_indexes: expected rising numbers, got {found!r}")
    return blocks


def _deepstack_rules(config: ModelConfig) -> tuple[TensorRule, ...]:
    """The k-th merger of the checkpoint belongs to the k-th of those blocks; GGUF counts by blocks."""
    shapes = {"norm": ("4d", "4d"), "fc1": ("4d 4d", "4d"), "fc2": ("t 4d", "t")}
    theirs = {"norm": "norm", "fc1": "linear_fc1", "fc2": "linear_fc2"}
    return tuple(
        TensorRule(
            f"v.deepstack.{block}.{part}.{kind}",
            f"model.visual.deepstack_merger_list.{number}.{theirs[part]}.{kind}",
            shapes[part][kind == "bias"],
        )
        for number, block in enumerate(_deepstack(config))
        for part in shapes
        for kind in ("weight", "bias")
    )


def _metadata(config: ModelConfig) -> dict[str, Value]:
    keys = clip_keys(config, "qwen3vl_merger", _EPS, activation_of(config, ("gelu",)))
    kept = _deepstack(config)
    return keys | {
        "clip.vision.spatial_merge_size": u32(2),
        "clip.vision.is_deepstack_layers": array(ValueType.BOOL, [block in kept for block in range(config.n_layers)]),
    }


PROJECTOR = Projector(
    name="qwen3vl_merger",
    classes=(
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
    ),
    spellings={"num_hidden_layers": "depth", "num_attention_heads": "num_heads"},
    defaults={
        "num_hidden_layers": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16,
        "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "num_position_embeddings": 2304, **HALF,
    },
    derived=_size,
    metadata=_metadata,
    dimensions=_dimensions,
    listed=_deepstack_rules,
    requirements=(*TWO_FRAMES, Requirement("spatial_merge_size", (2,), "its graph joins squares of four patches")),
    tensors=(
        *frame_rules("model.visual.patch_embed.proj.weight"),
        TensorRule("v.patch_embd.bias", "model.visual.patch_embed.proj.bias", "d"),
        TensorRule("v.position_embd.weight", "model.visual.pos_embed.weight", "n d"),
        *layer_rules(
            _BLOCK,
            {
                "ln1": "norm1", "ln2": "norm2", "attn_qkv": "attn.qkv", "attn_out": "attn.proj",
                "ffn_up": "mlp.linear_fc1", "ffn_down": "mlp.linear_fc2",
            },
            LAYER_SHAPES,
        ),
        TensorRule("v.post_ln.weight", "model.visual.merger.norm.weight", "d"),
        TensorRule("v.post_ln.bias", "model.visual.merger.norm.bias", "d"),
        TensorRule("mm.0.weight", "model.visual.merger.linear_fc1.weight", "4d 4d"),
        TensorRule("mm.0.bias", "model.visual.merger.linear_fc1.bias", "4d"),
        TensorRule("mm.2.weight", "model.visual.merger.linear_fc2.weight", "t 4d"),
        TensorRule("mm.2.bias", "model.visual.merger.linear_fc2.bias", "t"),
    ),
)  # fmt: skip
