"""Refuses a projector that llama.cpp's clip.cpp would crash on or over-allocate for, or that another model reads.

What clip.cpp refuses itself, with a reason (an unknown type, a missing tensor), is left to it.
"""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from edgepack.errors import GGUFError, UsageError
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.edge.llama.options import RuntimeOptions
    from edgepack.gguf.reader import GGUFHeader

_VISION = "clip.vision."
# key behind `clip.vision.` → (least, most) value; where it stands it must be in range.
_RANGES: dict[str, tuple[int, int]] = {
    "image_size": (1, 2**14),
    "patch_size": (1, 2**10),
    "embedding_length": (1, 2**16),
    "feed_forward_length": (0, 2**20),
    "block_count": (0, 512),
    "attention.head_count": (0, 2**10),
    "projection_dim": (0, 2**20),
    "preproc_image_size": (1, 2**20),
    "projector.scale_factor": (1, 64),
    "spatial_merge_size": (1, 64),
    "n_wa_pattern": (0, 512),
    "window_size": (1, 4096),
}
_REQUIRED = ("image_size", "patch_size", "embedding_length", "block_count", "attention.head_count")
# projector type → the tensor that gives embeddings, and which of its dimensions is their width (clip_n_mmproj_embd).
_OUTPUTS: dict[str, tuple[tuple[str, ...], int]] = {
    "idefics3": (("mm.model.fc.weight",), 0),
    "gemma3": (("mm.input_projection.weight",), 1),
    "gemma4v": (("mm.input_projection.weight",), 0),
    "mlp": (("mm.2.weight", "mm.0.weight"), 0),
    "pixtral": (("mm.2.weight",), 0),
    "lfm2": (("mm.2.weight",), 0),
    "qwen2vl_merger": (("mm.2.weight",), 0),
    "qwen2.5vl_merger": (("mm.2.weight",), 0),
    "qwen3vl_merger": (("mm.2.weight",), 0),
}

# Where every token of an image attends to all others they are evaluated at once; most of them (set_limit_image_tokens).
_TOGETHER = {"gemma3": 256, "gemma4v": 1120}


def check_projector(path: Path, model: GGUFHeader) -> GGUFHeader:
    """The header of a projector that is safe to hand to llama.cpp, and that gives what `model` reads.

    Args:
        path: the projector's GGUF.
        model: of the model beside it.

    Raises:
        UsageError: it does not exist, is something else, or was made for another model.
        GGUFError: it is truncated, hostile or inconsistent.
    """
    if not path.is_file():
        raise UsageError(f"projector '{path}': no such file")
    header = read_header(path)
    architecture = header.get(keys.ARCHITECTURE)
    if architecture != keys.PROJECTOR_ARCHITECTURE:
        raise UsageError(f"projector '{path}': expected general.architecture 'clip', got {architecture!r:.80}")
    if header.get("clip.has_vision_encoder") is not True:
        raise UsageError(f"projector '{path}': expected one that sees, got clip.has_vision_encoder false or none")
    _check_numbers(header)
    width, read = projected_width(header), _read_width(model)
    if width is not None and read is not None and width != read:
        raise UsageError(
            f"projector '{path}': it gives {width} numbers a token, '{model.path}' reads {read}: it was made for"
            " another model"
        )
    return header


def is_projector(header: GGUFHeader) -> bool:
    """Whether a GGUF holds what sees or hears, not a model that reads."""
    return bool(header.get(keys.ARCHITECTURE) == keys.PROJECTOR_ARCHITECTURE)


def projector_kind(header: GGUFHeader) -> str:
    """The projector's type in clip.cpp's words; empty where it says none."""
    return str(header.get(keys.PROJECTOR_TYPE) or header.get(keys.PROJECTOR_TYPE_OF_VISION) or "")


def tokens_together(projector: Path | None) -> int:
    """How many tokens a batch must hold so that the largest image of a projector is evaluated at once; 0 for any."""
    most = 0 if projector is None else _TOGETHER.get(projector_kind(read_header(projector)), 0)
    return -(-most // 256) * 256


def with_room_for_images(options: RuntimeOptions, projector: Path | None) -> RuntimeOptions:
    """The options, with batches that hold the largest image of a projector whose images are evaluated at once."""
    most = tokens_together(projector)
    return replace(options, n_batch=max(options.n_batch, most), n_ubatch=max(options.n_ubatch, most))


def projected_width(header: GGUFHeader) -> int | None:
    """How many numbers an image's token has; None for types whose tensors are not known here."""
    names, dimension = _OUTPUTS.get(projector_kind(header), ((), 0))
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    found = next((shapes[name] for name in names if name in shapes), None)
    return found[dimension] if found is not None and len(found) > dimension else None


def _read_width(model: GGUFHeader) -> int | None:
    width = model.get(f"{model.get(keys.ARCHITECTURE)}.embedding_length")
    return width if isinstance(width, int) else None


def _check_numbers(header: GGUFHeader) -> None:
    for name in _REQUIRED:
        if header.get(_VISION + name) is None:
            raise GGUFError(f"{header.path}: metadata key '{_VISION}{name}' is missing")
    for name, (least, most) in _RANGES.items():
        value = header.get(_VISION + name)
        if value is not None and not (_is_count(value) and least <= value <= most):
            raise GGUFError(f"{header.path}: {_VISION}{name}: expected {least} to {most}, got {value!r:.80}")
    width, heads = (header.get(_VISION + name) for name in ("embedding_length", "attention.head_count"))
    if heads and width % heads:
        raise GGUFError(
            f"{header.path}: {_VISION}embedding_length {width} is not a multiple of attention.head_count {heads}"
        )
    if header.get(f"{_VISION}patch_size") > header.get(f"{_VISION}image_size"):
        raise GGUFError(f"{header.path}: {_VISION}patch_size is larger than image_size")
    _check_floats(header)
    _check_layers(header)


def _check_floats(header: GGUFHeader) -> None:
    eps = header.get(f"{_VISION}attention.layer_norm_epsilon")
    if eps is not None and not _is_finite(eps):
        raise GGUFError(f"{header.path}: {_VISION}attention.layer_norm_epsilon: expected a number, got {eps!r:.80}")
    for name in ("image_mean", "image_std"):
        values = header.get(_VISION + name)
        if not isinstance(values, list) or len(values) < 3 or not all(map(_is_finite, values)):
            raise GGUFError(f"{header.path}: {_VISION}{name}: expected three numbers, got {values!r:.80}")


def _check_layers(header: GGUFHeader) -> None:
    """A layer without tensors: clip.cpp looks for one of the feed-forward network in each."""
    names, blocks = {tensor.name for tensor in header.tensors}, header.get(f"{_VISION}block_count")
    found = sum(f"v.blk.{block}.ffn_down.weight" in names for block in range(blocks))
    if 0 < found < blocks:
        raise GGUFError(f"{header.path}: {_VISION}block_count says {blocks} layers, but only {found} have tensors")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)
