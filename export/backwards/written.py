"""Writes a checkpoint that was read back from a GGUF into a folder that transformers loads; one tensor at a time.

What the checkpoint holds is `export.backwards.checkpoint`'s.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import NumericError, UsageError
from edgepack.files.folders import folder_output
from edgepack.files.output import atomic_output
from edgepack.gguf.types import GGMLType
from edgepack.progress import silent
from edgepack.quant.codecs.ggml.codec import dequantize_rows, quantize_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.model import Checkpoint, TensorSource
    from edgepack.progress import Progress

AUTO = "auto"
DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""torch's names of the types that weights may be written in → safetensors' in lower case."""

_WIDTHS = {"f32": 4, "f16": 2, "bf16": 2}
_GGML = {"f32": GGMLType.F32, "f16": GGMLType.F16, "bf16": GGMLType.BF16}
_NAMES = {ours: theirs for theirs, ours in DTYPES.items()}
_STEP_WEIGHTS = 1 << 20


@dataclass(frozen=True)
class FolderPlan:
    """What a folder will hold.

    Attributes:
        dtypes: tensor → type, `f32`, `f16` or `bf16`, in the order of the file.
        dtype: torch's name of the type that holds all of them.
        bytes: of the weights.
    """

    dtypes: Mapping[str, str]
    dtype: str
    bytes: int


def plan_folder(tensors: TensorSource, dtype: str = AUTO) -> FolderPlan:
    """Types of all tensors.

    Args:
        tensors: of the checkpoint.
        dtype: `auto` keeps every value: halves stay what they are, what was quantised becomes float32, and vectors,
            which a GGUF holds in float32, take the type of the matrices where that holds them exactly. Else a key of
            `DTYPES` for all.

    Raises:
        UsageError: no such type.
    """
    if dtype not in (AUTO, *DTYPES):
        raise UsageError(f"--dtype: expected {AUTO}, {', '.join(DTYPES)}, got '{dtype}'")
    specs = tensors.specs
    if dtype == AUTO:
        weights: Counter[str] = Counter()
        for spec in specs.values():
            weights[spec.dtype] += prod(spec.shape) if len(spec.shape) > 1 else 0
        main = max(weights, key=lambda kind: weights[kind], default="f32")
        found = {
            name: main if spec.dtype == "f32" and _fits(tensors, name, main) else spec.dtype
            for name, spec in specs.items()
        }
    else:
        found = dict.fromkeys(specs, DTYPES[dtype])
    kinds = set(found.values())
    size = sum(_WIDTHS[found[name]] * prod(spec.shape) for name, spec in specs.items())
    return FolderPlan(found, _NAMES[kinds.pop() if len(kinds) == 1 else "f32"], size)


def _fits(tensors: TensorSource, name: str, kind: str) -> bool:
    """Whether a vector's values are the same in `kind`."""
    spec = tensors.specs[name]
    if kind == "f32" or len(spec.shape) > 1:
        return kind == "f32"
    rows = tensors.read_rows(name, 0, spec.rows)
    blocks = quantize_rows(_GGML[kind], rows)
    return bool(np.array_equal(dequantize_rows(_GGML[kind], blocks.reshape(-1), *rows.shape), rows))


def write_folder(checkpoint: Checkpoint, folder: Path, plan: FolderPlan, *, progress: Progress = silent) -> None:
    """Write the checkpoint; `folder` appears only when it is whole.

    Args:
        checkpoint: with its small files in its own folder.
        folder: the final name, which must not be there yet.
        plan: of its tensors.
        progress: told the bytes written.

    Raises:
        UsageError: the folder is there already, or the one around it is not.
        ResourceError: the disk is or becomes too small.
        NumericError: a weight that the type cannot hold.
    """
    check_folder(folder)
    with folder_output(folder, plan.bytes) as partial:
        for path in sorted(checkpoint.path.rglob("*")):
            copy = partial / path.relative_to(checkpoint.path)
            copy.mkdir() if path.is_dir() else shutil.copyfile(path, copy)
        config = {**checkpoint.config, "dtype": plan.dtype}
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _write_weights(checkpoint.tensors, partial / "model.safetensors", plan, progress)


def _write_weights(tensors: TensorSource, path: Path, plan: FolderPlan, progress: Progress) -> None:
    with atomic_output(path, plan.bytes) as stream, progress("checkpoint", plan.bytes) as done:
        stream.write(_header(tensors, plan))
        for name, kind in plan.dtypes.items():
            for piece in _pieces(tensors, name, kind):
                stream.write(piece.data)
                done(piece.nbytes)


def check_folder(folder: Path) -> None:
    """Raise UsageError unless a folder can be made there."""
    if folder.exists():
        raise UsageError(f"output '{folder}': expected a name that is not there yet")
    if not folder.parent.is_dir():
        raise UsageError(f"output '{folder}': folder '{folder.parent}' does not exist")


def _header(tensors: TensorSource, plan: FolderPlan) -> bytes:
    """Length and header of a safetensors file, padded to whole words."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, kind in plan.dtypes.items():
        shape = tensors.specs[name].shape
        end = at + _WIDTHS[kind] * prod(shape)
        entries[name] = {"dtype": kind.upper(), "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pieces(tensors: TensorSource, name: str, kind: str) -> Iterator[NDArray[np.uint8]]:
    """A tensor's bytes, some rows at a time."""
    spec = tensors.specs[name]
    step = max(1, _STEP_WEIGHTS // spec.columns)
    for start in range(0, spec.rows, step):
        rows = tensors.read_rows(name, start, min(start + step, spec.rows))
        blocks = quantize_rows(_GGML[kind], rows)
        if kind == "f16" and np.isinf(blocks.view(np.float16)).any():
            raise NumericError(f"tensor '{name}': weights up to {np.abs(rows).max():.6g} do not fit into float16")
        yield blocks
