"""Gemma 4: patches by their pixels, a table of positions for each side, norms around every part, squares averaged.

What hears beside it (`embed_audio`, `audio_tower`) is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.export.row_functions import RefoldedRows
from edgepack.export.rules.family import Requirement, TensorRule
from edgepack.export.rules.projector import (
    LAYER_SHAPES,
    Projector,
    activation_of,
    clip_keys,
    layer_rules,
    tower_dimensions,
)
from edgepack.export.rules.vision_rows import patches_by_pixel
from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows

_BLOCK = "model.vision_tower.encoder.layers.{i}."
_LINEAR = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_NORMS = {
    "ln1": "input_layernorm", "ln2": "pre_feedforward_layernorm", "attn_post_norm": "post_attention_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}  # fmt: skip
_LIMITS = ("input_min", "input_max", "output_min", "output_max")


def _size(_config: ModelConfig) -> dict[str, Any]:
    return {"image_size": 224}  # llama.cpp's converter: sizes are free, the number is of no consequence


def _dimensions(config: ModelConfig) -> dict[str, int]:
    sizes = tower_dimensions(config)
    return sizes | {"n": config.count("position_embedding_size"), "h": config.head_dim}


def _metadata(config: ModelConfig) -> dict[str, Value]:
    keys = clip_keys(config, "gemma4v", config.number("rms_norm_eps"), activation_of(config, ("gelu",)))
    return keys | {"clip.vision.projector.scale_factor": u32(config.count("pooling_kernel_size"))}


def _scalar(rows: Rows, _config: ModelConfig) -> Rows:
    """HF: a number → ggml: {1}."""
    return RefoldedRows(rows, (1,))


def _limit_rules(name: str, source: str) -> tuple[TensorRule, ...]:
    """Between which numbers a matrix' input and output are held, where the checkpoint says so."""
    return tuple(TensorRule(f"{name}.{end}", f"{source}.{end}", "1", _scalar, optional=True) for end in _LIMITS)


def _deaf(config: ModelConfig) -> tuple[str, ...]:
    """A model that hears too loses that."""
    hears = config.values["text"].get("audio_config") is not None
    return ("projector: what hears is left out: llama.cpp gets the part that sees",) if hears else ()


def _own_heads(config: ModelConfig) -> tuple[int, ...]:
    return (config.hidden // config.n_heads,)


PROJECTOR = Projector(
    name="gemma4v",
    classes=("Gemma4ForConditionalGeneration",),
    defaults={
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 16, "num_attention_heads": 12,
        "num_key_value_heads": 12, "head_dim": 64, "patch_size": 16, "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6, "position_embedding_size": 10240, "pooling_kernel_size": 3,
        "image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0],
    },
    derived=_size,
    remarks=_deaf,
    metadata=_metadata,
    dimensions=_dimensions,
    requirements=(
        Requirement("head_dim", _own_heads, "its heads share the tower's width"),
        Requirement("num_key_value_heads", lambda config: (config.n_heads,), "its heads have keys of their own"),
        Requirement("rope_parameters.rope_theta", (100.0, 100), "its graph has this base of rope"),
        Requirement("attention_bias", (False,), "its attention has no biases"),
    ),
    tensors=(
        TensorRule(
            "v.patch_embd.weight", "model.vision_tower.patch_embedder.input_proj.weight", "d 3 p p", patches_by_pixel
        ),
        TensorRule(
            "v.position_embd.weight", "model.vision_tower.patch_embedder.position_embedding_table", "2 n d"
        ),
        *layer_rules(_BLOCK, _NORMS, dict.fromkeys(_NORMS, "d"), bias=False),
        *layer_rules(_BLOCK, {part: f"{name}.linear" for part, name in _LINEAR.items()}, LAYER_SHAPES, bias=False),
        *(
            rule
            for part, name in _LINEAR.items()
            for rule in _limit_rules(f"v.blk.{{i}}.{part}", f"{_BLOCK}{name}")
        ),
        TensorRule("v.blk.{i}.attn_q_norm.weight", _BLOCK + "self_attn.q_norm.weight", "h"),
        TensorRule("v.blk.{i}.attn_k_norm.weight", _BLOCK + "self_attn.k_norm.weight", "h"),
        TensorRule("v.std_bias", "model.vision_tower.std_bias", "d", optional=True),
        TensorRule("v.std_scale", "model.vision_tower.std_scale", "d", optional=True),
        TensorRule("mm.input_projection.weight", "model.embed_vision.embedding_projection.weight", "t d"),
    ),
)  # fmt: skip
