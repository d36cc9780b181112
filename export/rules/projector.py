"""The form in which a projector is written down: what sees (a vision tower and what leads into the model), as data.

Projectors themselves are one family a file in `export/projectors`; turning rules into tensors is left to
`export.rules.mapping`, opening a checkpoint's to `export.projector`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.errors import CheckpointError, UnsupportedModelError
from edgepack.export.rules.family import Family, Requirement, TensorRule
from edgepack.gguf.types import Value, ValueType, array, boolean, f32, string, u32

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgepack.export.config import ModelConfig
    from edgepack.export.rules.family import Transform

PREPROCESSOR = "preprocessor"
"""The setting under which a projector's configuration holds preprocessor_config.json."""
TEXT_WIDTH = "text_width"
"""The setting that is the width of the text model's embeddings."""
_EVERYTHING_ELSE = (r"",)
_LIMITS = {"layers": 512, "pixels of a side": 2**14}  # LLAMA_MAX_LAYERS; what clip.cpp allocates for without a look


def nothing_listed(_config: ModelConfig) -> tuple[TensorRule, ...]:
    """For projectors whose names are the same in every size."""
    return ()


@dataclass(frozen=True)
class Projector(Family):
    """What of one kind of model sees. `name` is the projector's type in clip.cpp.

    Attributes:
        lifted: settings of the whole model, beside `vision_config`, that the projector needs.
        listed: further rules, whose names the configuration says.
        halves: regular expressions of tensors that are f16 in f16 and f32 in every other type: kernels of
            convolutions, as llama.cpp's converter has them.
        floats: regular expressions of tensors that are always f32, because the graph adds them or looks rows up.
    """

    lifted: tuple[str, ...] = ()
    listed: Callable[[ModelConfig], tuple[TensorRule, ...]] = nothing_listed
    halves: tuple[str, ...] = (r"^v\.patch_embd\.weight",)
    floats: tuple[str, ...] = (r"^v\.position_embd\.",)
    unused: tuple[str, ...] = _EVERYTHING_ELSE
    tied_head: str | None = None


def clip_keys(config: ModelConfig, kind: str, eps: float, activation: str | None) -> dict[str, Value]:
    """What clip.cpp reads of every vision tower (`load_hparams`).

    Args:
        config: the vision tower's.
        kind: the projector's type.
        eps: of the tower's norms.
        activation: `gelu`, `silu`, or None for the quick GELU.

    Raises:
        UnsupportedModelError: sizes beyond what llama.cpp holds.
    """
    keys: dict[str, Value] = {
        "clip.has_vision_encoder": boolean(True),
        "clip.projector_type": string(kind),
        "clip.vision.image_size": u32(config.bounded("pixels of a side", _LIMITS["pixels of a side"], "image_size")),
        "clip.vision.patch_size": u32(config.count("patch_size")),
        "clip.vision.embedding_length": u32(config.hidden),
        "clip.vision.feed_forward_length": u32(inner_width(config)),
        "clip.vision.block_count": u32(config.n_layers),
        "clip.vision.attention.head_count": u32(config.n_heads),
        "clip.vision.attention.layer_norm_epsilon": f32(eps),
        "clip.vision.projection_dim": u32(config.count(TEXT_WIDTH)),
        "clip.vision.image_mean": _three(config, "image_mean"),
        "clip.vision.image_std": _three(config, "image_std"),
    }
    if activation is not None:
        keys[f"clip.use_{activation}"] = boolean(True)
    return keys


def inner_width(config: ModelConfig) -> int:
    """Width of the tower's feed-forward network.

    Raises:
        UnsupportedModelError: it is the tower's own width: clip.cpp takes its two matrices for exchanged then
            (`is_ffn_swapped`, for files of an old converter).
    """
    width = config.count("intermediate_size")
    if width == config.hidden:
        raise UnsupportedModelError(
            f"{config.label}: intermediate_size is {width}, as hidden_size: llama.cpp needs two sizes, because it"
            " exchanges the matrices of a feed-forward network that is as wide as the tower"
        )
    return width


def preprocessor(config: ModelConfig) -> Mapping[str, Any]:
    """What preprocessor_config.json says; empty without one."""
    found = config.get(PREPROCESSOR)
    return found if isinstance(found, dict) else {}


def preprocessor_count(config: ModelConfig, key: str, default: int) -> int:
    """A positive integer of preprocessor_config.json; raises CheckpointError for anything else."""
    value = preprocessor(config).get(key, default)
    if type(value) is not int or not 0 < value < 2**31:
        raise CheckpointError(f"preprocessor_config.json: {key}: expected a positive integer, got {value!r}")
    return value


def _three(config: ModelConfig, key: str) -> Value:
    """A number for each of red, green and blue; the family's where no file says them."""
    numbers = preprocessor(config).get(key, config.get(key))
    if (
        not isinstance(numbers, list)
        or len(numbers) != 3
        or not all(isinstance(each, int | float) and not isinstance(each, bool) for each in numbers)
        or (key == "image_std" and not all(numbers))
    ):
        raise CheckpointError(f"preprocessor_config.json: {key}: expected three numbers, got {numbers!r}")
    return array(ValueType.FLOAT32, [float(each) for each in numbers])


def activation_of(config: ModelConfig, known: Sequence[str] = ("gelu", "quick_gelu", "silu"), default: str = "") -> str:
    """The tower's activation in clip.cpp's words: `gelu` is the one by tanh, in a table of half-precision numbers.

    Raises:
        UnsupportedModelError: the tower has another one.
    """
    name = config.get("hidden_act", "hidden_activation", "hidden_act_fn") or default
    word = {"gelu_pytorch_tanh": "gelu", "gelu_new": "gelu", "gelu_fast": "gelu"}.get(name, name)
    if word not in known:
        raise UnsupportedModelError(
            f"{config.label}: hidden_act is {name!r}: llama.cpp needs {' or '.join(known)}, because its graph has no"
            " other"
        )
    return str(word)


def layer_rules(prefix: str, names: Mapping[str, str], shapes: Mapping[str, str], *, bias: bool = True) -> tuple[
    TensorRule, ...
]:  # fmt: skip
    """The tensors of every block of a tower: GGUF names `v.blk.{i}.KEY`, checkpoint names `prefix` and the values.

    Args:
        prefix: of the checkpoint's names, with `{i}` for the layer.
        names: last part of the GGUF's name → of the checkpoint's.
        shapes: last part of the GGUF's name → of the weight; the bias has its first dimension.
        bias: whether there are biases.
    """
    rules = []
    for ours, theirs in names.items():
        rules.append(TensorRule(f"v.blk.{{i}}.{ours}.weight", f"{prefix}{theirs}.weight", shapes[ours]))
        if bias:
            rules.append(TensorRule(f"v.blk.{{i}}.{ours}.bias", f"{prefix}{theirs}.bias", shapes[ours].split()[0]))
    return tuple(rules)


LAYER_SHAPES = {
    "ln1": "d", "ln2": "d", "attn_q": "d d", "attn_k": "d d", "attn_v": "d d", "attn_out": "d d", "attn_qkv": "3d d",
    "ffn_up": "ff d", "ffn_down": "d ff", "ffn_gate": "ff d",
}  # fmt: skip
SIGLIP_LAYER = {
    "ln1": "layer_norm1", "ln2": "layer_norm2", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_out": "self_attn.out_proj", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2",
}  # fmt: skip
"""Of SigLIP and CLIP, in transformers' names."""


def tower_dimensions(config: ModelConfig) -> dict[str, int]:
    """D width · ff feed-forward · p patch · n positions · t text model's width · 3d three widths."""
    side = config.count("image_size") // config.count("patch_size")
    return {
        "d": config.hidden,
        "ff": config.count("intermediate_size"),
        "p": config.count("patch_size"),
        "n": side * side,
        "t": config.count(TEXT_WIDTH),
        "3d": 3 * config.hidden,
    }


def siglip_rules(prefix: str, patches: Transform | None = None) -> tuple[TensorRule, ...]:
    """SigLIP's tower: patches by a convolution with bias, learned positions, blocks, a norm behind them.

    Args:
        prefix: of the checkpoint's names.
        patches: makes the convolution's kernel of what the checkpoint has.
    """
    return (
        TensorRule("v.patch_embd.weight", f"{prefix}embeddings.patch_embedding.weight", "d 3 p p", patches),
        TensorRule("v.patch_embd.bias", f"{prefix}embeddings.patch_embedding.bias", "d"),
        TensorRule("v.position_embd.weight", f"{prefix}embeddings.position_embedding.weight", "n d"),
        *layer_rules(f"{prefix}encoder.layers.{{i}}.", SIGLIP_LAYER, LAYER_SHAPES),
        TensorRule("v.post_ln.weight", f"{prefix}post_layernorm.weight", "d"),
        TensorRule("v.post_ln.bias", f"{prefix}post_layernorm.bias", "d"),
    )


THREE_CHANNELS = Requirement("num_channels", (3,), "its images are red, green and blue")
TWO_FRAMES = (
    Requirement("in_channels", (3,), "its images are red, green and blue"),
    Requirement("temporal_patch_size", (2,), "its graph adds the patches of two frames"),
)
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
CLIP_COLOURS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
"""transformers' OPENAI_CLIP_MEAN and _STD."""
SIGLIP_FLOATS = (r"^v\.(patch|position)_embd\.",)
"""Of towers whose embeddings llama.cpp's converter never rounds."""
SIGLIP_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
}  # fmt: skip
TOWER_NAMES = (
    ("model.vision_tower.", "vision_tower.vision_model."),  # as they were published before transformers 5
    ("model.vision_tower.", "model.vision_tower.vision_model."),
)
