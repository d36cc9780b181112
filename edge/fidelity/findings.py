"""What a file holds against what its original says it should: each tensor's error and each setting that differs.

Where predictions go wrong is `edge.fidelity.validate`'s business; this says which tensor or setting is behind it.
"""

from __future__ import annotations

import math
import mmap
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgepack.edge.fidelity.run import FileFindings, WeightError
from edgepack.errors import GGUFError
from edgepack.files.source import open_source
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.progress import silent
from edgepack.quant.codecs.ggml.codec import dequantize_rows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.gguf.reader import GGUFHeader
    from edgepack.gguf.types import TensorInfo, Value
    from edgepack.progress import Progress

_CHUNK_WEIGHTS = 1 << 22  # 16 MB of float32 at a time
_HOPELESS = 0.8  # relative error that no type has on trained weights
_OUTLIER = 4.0  # times the median of the tensors of the same type
# Names and the like, and what edgepack notes of how a file was made: recipe, figures of passes, grids, certificates.
_SKIPPED = (keys.GENERAL, keys.QUANTIZE, keys.CHAT_TEMPLATE, keys.SPLIT, *keys.NOTES)
_FLOAT_TOLERANCE = 1e-6


class WeightRows(Protocol):
    """Rows of a tensor of the original, as `export.rows.Rows`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Outermost dimension first."""
        ...

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` (included) to `stop` (not included), float32 [rows, columns]."""
        ...


class Original(Protocol):
    """What a file was made from, under GGUF names, as `export.mapped.MappedModel`."""

    @property
    def metadata(self) -> Mapping[str, Value]:
        """Every key that the file should have."""
        ...

    @property
    def tensors(self) -> Mapping[str, WeightRows]:
        """GGUF name → rows."""
        ...


def find_differences(original: Original, candidate: Path, progress: Progress = silent) -> FileFindings:
    """Hold a GGUF's metadata and weights against the original's; reads both once, in bounded memory.

    Raises:
        GGUFError: the file is not a whole GGUF.
        NumericError: the original holds a weight that is no number.
    """
    header = read_header(candidate)
    present = {info.name: info for info in header.tensors}
    differences = [*metadata_differences(original.metadata, header.metadata)]
    differences += [f"tensor '{name}' is missing" for name in original.tensors if name not in present]
    differences += [f"tensor '{name}' is not in the original" for name in present if name not in original.tensors]
    shared = [info for info in header.tensors if info.name in original.tensors]
    errors = []
    with progress("comparing weights", sum(info.nbytes for info in shared)) as advance:
        for info in shared:
            rows = original.tensors[info.name]
            if tuple(rows.shape) == info.shape:
                errors.append((info, relative_error(header, info, rows)))
            else:
                differences.append(f"tensor '{info.name}': shape {list(info.shape)}, original {list(rows.shape)}")
            advance(info.nbytes)
    return FileFindings(tuple(_judge(errors)), tuple(differences))


def metadata_differences(original: Mapping[str, Value], candidate: Mapping[str, Value]) -> list[str]:
    """One line for each architecture or tokenizer key that differs; names, licences and the like are left out."""
    lines = []
    for key in sorted(set(original) | set(candidate)):
        if key.startswith(_SKIPPED):
            continue
        ours, theirs = original.get(key), candidate.get(key)
        if ours is None or theirs is None:
            if not any(value and value.value is not False for value in (ours, theirs)):
                continue  # readers take an absent flag for false
            lines.append(f"{key}: {_shown(theirs)}, original {_shown(ours)}")
        elif not _same(ours.value, theirs.value):
            lines.append(f"{key}: {_difference(ours.value, theirs.value)}")
    return lines


def relative_error(header: GGUFHeader, info: TensorInfo, rows: WeightRows) -> float:
    """‖Ŵ − W‖ / ‖W‖ of one tensor, read in pieces."""
    if header.data_start + info.offset + info.nbytes > header.file_bytes:
        raise GGUFError(f"{header.path}: tensor '{info.name}' ends beyond the file")
    columns = info.shape[-1] if info.shape else 1
    step = max(1, _CHUNK_WEIGHTS // columns)
    row_bytes = info.type.row_bytes(columns)
    difference = norm = 0.0
    with open_source(header.path) as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = header.data_start + info.offset
        for row in range(0, info.rows, step):
            count = min(step, info.rows - row)
            raw = data[start + row * row_bytes : start + (row + count) * row_bytes]
            got = dequantize_rows(info.type, raw, count, columns).astype(np.float64)
            expected = rows.read(row, row + count).reshape(count, columns).astype(np.float64)
            difference += float(((got - expected) ** 2).sum())
            norm += float((expected**2).sum())
    if not math.isfinite(difference):
        return math.inf
    return math.sqrt(difference / norm) if norm else (0.0 if not difference else math.inf)


def _judge(errors: list[tuple[TensorInfo, float]]) -> list[WeightError]:
    by_type: dict[str, list[float]] = {}
    for info, error in errors:
        by_type.setdefault(info.type.name, []).append(error)
    usual = {name: median(values) for name, values in by_type.items()}
    return [
        WeightError(
            info.name,
            info.type.name,
            error,
            _suspect(error, usual[info.type.name], info.type.is_quantized),
            is_matrix=len(info.shape) > 1 and min(info.shape[-2:]) > 1,
        )
        for info, error in errors
    ]


def _suspect(error: float, usual: float, quantized: bool) -> bool:
    if not quantized:
        return error > 0.01  # the step of bf16 is 2⁻⁸
    return error > _HOPELESS or error > _OUTLIER * usual


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, (int, float)):
        return math.isclose(ours, theirs, rel_tol=_FLOAT_TOLERANCE)
    if isinstance(ours, list) and isinstance(theirs, list) and ours and isinstance(ours[0], float):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return bool(ours == theirs)


def _difference(ours: Any, theirs: Any) -> str:
    if not isinstance(ours, list) or not isinstance(theirs, list):
        return f"{theirs!r}, original {ours!r}"
    if len(ours) != len(theirs):
        return f"{len(theirs)} items, original {len(ours)}"
    index = next(index for index, pair in enumerate(zip(ours, theirs, strict=True)) if not _same(*pair))
    return f"item {index} is {theirs[index]!r}, original {ours[index]!r}"


def _shown(value: Value | None) -> str:
    if value is None:
        return "absent"
    return f"{len(value.value)} items" if isinstance(value.value, list) else repr(value.value)
