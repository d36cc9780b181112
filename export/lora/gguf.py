"""A LoRA adapter as a GGUF beside the model: `<tensor>.lora_a` and `.lora_b` for every tensor that it changes.

Rows of a GGUF's tensor are rows of a checkpoint's, permuted, cut, joined or scaled; the same is done to the factors.
Layout: llama.cpp's src/llama-adapter.cpp. Merging is left to `export.lora.adapter`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.atomic_file import atomic_output
from edgepack.errors import AdapterError
from edgepack.export.row_functions import PermutedColumns
from edgepack.export.rows import (
    JoinedRows,
    PermutedRows,
    ReshapedRows,
    ScaledRows,
    ShiftedRows,
    SlicedRows,
    SourceRows,
    TransposedRows,
)
from edgepack.gguf.types import GGMLType, TensorInfo, Value, f32, string
from edgepack.gguf.writer import GGUFWriter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.export.lora.adapter import Adapter
    from edgepack.export.mapped_model import MappedModel
    from edgepack.export.rows import Rows

    Matrix = NDArray[np.float32]

_EMBEDDING = "token_embd.weight"
_HEAD = "output.weight"
_MAX_JOINED_RANK = 4096


@dataclass(frozen=True)
class Factors:
    """`b` [rows, rank] · `a` [rank, columns] is added to a tensor."""

    a: Matrix
    b: Matrix


def adapter_factors(adapter: Adapter, model: MappedModel) -> dict[str, Factors]:
    """The factors of every GGUF tensor that the adapter changes.

    Raises:
        AdapterError: a change that is not of low rank, or a tensor whose factors cannot be rearranged.
    """
    if adapter.replaced:
        raise AdapterError(f"{adapter.path}: it replaces '{next(iter(adapter.replaced))}' whole: merge it instead")
    if any(update.magnitude is not None for update in adapter.low_rank.values()):
        raise AdapterError(f"{adapter.path}: DoRA rescales rows, which a GGUF adapter cannot: merge it instead")
    left = set(adapter.low_rank).difference(*map(_source_names, model.tensors.values()))
    if left:
        raise AdapterError(f"{adapter.path}: the exported model has no '{min(left)}' of its own: merge it instead")
    found = {name: _factors(rows, adapter) for name, rows in model.tensors.items()}
    factors = {name: pair for name, pair in found.items() if pair is not None}
    if _EMBEDDING in factors and _HEAD not in model.tensors:
        # llama.cpp (0.3.36's) aborts the process: its head multiplies by factors that are laid out for look-ups
        raise AdapterError(f"{adapter.path}: the embedding that it changes is the head too: merge it instead")
    return factors


def _source_names(rows: Rows) -> set[str]:
    """The checkpoint's tensors that an expression reads."""
    if isinstance(rows, SourceRows):
        return {rows.name}
    parts = rows.parts if isinstance(rows, JoinedRows) else [getattr(rows, "base", None)]
    return set().union(*(_source_names(part) for part in parts if part is not None))


def _factors(rows: Rows, adapter: Adapter) -> Factors | None:
    """The factors of an expression over the checkpoint's tensors, None where the adapter leaves it alone."""
    if isinstance(rows, SourceRows):
        update = adapter.low_rank.get(rows.name)
        return None if update is None else Factors(update.up, update.down)
    if isinstance(rows, JoinedRows):
        return _joined(rows, adapter)
    base = getattr(rows, "base", None)
    pair = None if base is None else _factors(base, adapter)
    if pair is None or isinstance(rows, ShiftedRows):
        return pair
    if isinstance(rows, PermutedRows):
        return Factors(pair.a, pair.b[rows.order])
    if isinstance(rows, PermutedColumns):
        return Factors(pair.a[:, rows.order], pair.b)
    if isinstance(rows, SlicedRows):
        return Factors(pair.a, pair.b[rows.start : rows.stop])
    if isinstance(rows, ScaledRows):
        return Factors(pair.a, pair.b * np.float32(rows.factor))
    if isinstance(rows, TransposedRows):
        return Factors(pair.b.T, pair.a.T)
    if isinstance(rows, ReshapedRows) and len(rows.shape) == 2:
        return pair
    raise AdapterError(f"{adapter.path}: a {type(rows).__name__} cannot be adapted apart: merge the adapter instead")


def _joined(rows: JoinedRows, adapter: Adapter) -> Factors | None:
    """Parts one below the other: ranks add up, each part's rows use its own."""
    pairs = [_factors(part, adapter) for part in rows.parts]
    present = [pair for pair in pairs if pair is not None]
    if not present:
        return None
    rank = sum(len(pair.a) for pair in present)
    if len(rows.shape) != 2 or rank > _MAX_JOINED_RANK:
        raise AdapterError(f"{adapter.path}: stacked experts cannot be adapted apart: merge the adapter instead")
    b = np.zeros((rows.shape[0], rank), dtype=np.float32)
    row = column = 0
    for part, pair in zip(rows.parts, pairs, strict=True):
        if pair is not None:
            b[row : row + part.shape[0], column : column + len(pair.a)] = pair.b
            column += len(pair.a)
        row += part.shape[0]
    return Factors(np.concatenate([pair.a for pair in present]), b)


def write_adapter(adapter: Adapter, model: MappedModel, path: Path) -> int:
    """Write `adapter` for `model` to `path`, in float32.

    llama.cpp multiplies by alpha over the rank; the factors are divided by the same, so that joined and
    per-module scales come out right.

    Returns:
        The file's length in bytes.

    Raises:
        AdapterError: as `adapter_factors`.
        ResourceError: the disk is too small.
    """
    tensors: dict[str, Matrix] = {}
    for name, pair in adapter_factors(adapter, model).items():
        scale = np.float32(adapter.alpha / len(pair.a)) if adapter.alpha else np.float32(1)
        tensors[f"{name}.lora_a"] = pair.b / scale if name == _EMBEDDING else pair.a
        tensors[f"{name}.lora_b"] = pair.a.T if name == _EMBEDDING else pair.b / scale
    infos = [TensorInfo(name, matrix.shape, GGMLType.F32) for name, matrix in tensors.items()]
    metadata = _metadata(adapter, model.metadata)
    with atomic_output(path, sum(info.nbytes for info in infos)) as stream:
        writer = GGUFWriter(stream, metadata, infos)
        writer.write_header()
        for name, matrix in tensors.items():
            writer.write(name, np.ascontiguousarray(matrix, dtype="<f4").tobytes())
        writer.close()
        return writer.total_bytes


def _metadata(adapter: Adapter, model: Mapping[str, Value]) -> dict[str, Value]:
    return {
        "general.architecture": model["general.architecture"],
        "general.type": string("adapter"),
        "general.name": string(adapter.path.name or "adapter"),
        "adapter.type": string("lora"),
        "adapter.lora.alpha": f32(adapter.alpha),
    }
