"""A LoRA adapter as a GGUF beside the model: `<tensor>.lora_a` and `.lora_b` for every tensor that it changes.

Rows of a GGUF's tensor are rows of a checkpoint's, permuted, cut, joined or scaled; the same is done to the factors.
Layout: llama.cpp's src/llama-adapter.cpp. Merging is left to `export.lora.adapter`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import AdapterError
from edgepack.files.output import atomic_output
from edgepack.gguf import keys
from edgepack.gguf.types import GGMLType, TensorInfo, Value, f32, string
from edgepack.gguf.writer import GGUFWriter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.export.lora.adapter import Adapter
    from edgepack.export.mapped import MappedModel
    from edgepack.export.row_origin import RowOrigin
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
    whole = sorted(adapter.replaced) + sorted(adapter.rows)
    if whole:
        raise AdapterError(f"{adapter.path}: it replaces '{whole[0]}', whole or by rows: merge it instead")
    if any(update.magnitude is not None for update in adapter.low_rank.values()):
        raise AdapterError(f"{adapter.path}: DoRA rescales rows, which a GGUF adapter cannot: merge it instead")
    left = set(adapter.low_rank).difference(*(rows.origin.names for rows in model.tensors.values()))
    if left:
        raise AdapterError(f"{adapter.path}: the exported model has no '{min(left)}' of its own: merge it instead")
    found = {name: _factors(rows, adapter) for name, rows in model.tensors.items()}
    factors = {name: pair for name, pair in found.items() if pair is not None}
    if _EMBEDDING in factors and _HEAD not in model.tensors:
        # llama.cpp (0.3.36's) aborts the process: its head multiplies by factors that are laid out for look-ups
        raise AdapterError(f"{adapter.path}: the embedding that it changes is the head too: merge it instead")
    return factors


def _factors(rows: Rows, adapter: Adapter) -> Factors | None:
    """The factors of a tensor, None where the adapter leaves it alone; ranks of joined sources add up."""
    origin = rows.origin
    updates = [(part, adapter.low_rank[name]) for part, name in enumerate(origin.names) if name in adapter.low_rank]
    if not updates:
        return None
    if len(rows.shape) != 2:
        raise AdapterError(f"{adapter.path}: stacked experts cannot be adapted apart: merge the adapter instead")
    rank = sum(len(update.up) for _, update in updates)
    if not origin.is_linear or (rank > _MAX_JOINED_RANK and len(updates) > 1):
        raise AdapterError(
            f"{adapter.path}: a {type(rows).__name__} cannot be adapted apart: merge the adapter instead"
        )
    pairs = [
        _of_part(origin, part, Factors(update.up, update.down), rows.shape[0]) for part, update in updates
    ]  # fmt: skip
    return Factors(np.concatenate([pair.a for pair in pairs]), np.concatenate([pair.b for pair in pairs], axis=1))


def _of_part(origin: RowOrigin, part: int, update: Factors, count: int) -> Factors:
    """What the update of one source does to the `count` rows of a tensor; nothing to those from other sources."""
    if origin.names[part] in origin.transposed:
        update = Factors(update.b.T, update.a.T)
    mine, rows = origin.of_part(part)
    b = np.zeros((count, len(update.a)), dtype=np.float32)
    b[mine] = update.b[rows]
    if origin.factors is not None:
        b *= origin.factors[:, None]
    return Factors(update.a if origin.columns is None else update.a[:, origin.columns], b)


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
        keys.ARCHITECTURE: model[keys.ARCHITECTURE],
        keys.TYPE: string("adapter"),
        keys.NAME: string(adapter.path.name or "adapter"),
        keys.ADAPTER_TYPE: string("lora"),
        keys.ADAPTER_ALPHA: f32(adapter.alpha),
    }
