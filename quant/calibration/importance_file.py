"""Importance matrices as files: llama.cpp's GGUF form and its older `.dat`, both read and written.

Layouts: `save_imatrix` and `save_imatrix_legacy` in llama.cpp's tools/imatrix/imatrix.cpp.
"""

from __future__ import annotations

import struct
from math import prod
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from edgepack.errors import CalibrationError, GGUFError
from edgepack.files.output import atomic_output
from edgepack.files.source import open_source
from edgepack.gguf import keys
from edgepack.gguf.reader import MAGIC, GGUFHeader, read_header
from edgepack.gguf.types import GGMLType, TensorInfo, Value, ValueType, array, string, u32
from edgepack.gguf.writer import GGUFWriter
from edgepack.quant.calibration.importance import ImportanceEntry, ImportanceMatrix

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_SUMS, _COUNTS = ".in_sum2", ".counts"
_FLOATS: dict[GGMLType, np.dtype[Any]] = {GGMLType.F32: np.dtype("<f4"), GGMLType.F64: np.dtype("<f8")}
_MAX_NAME_BYTES = 1 << 12
_MAX_ENTRIES = 1 << 20
_LEGACY_CHUNK = 512  # tokens of a chunk where the file does not say: llama.cpp's default


def read_importance(path: Path) -> ImportanceMatrix:
    """Read an importance matrix of either form.

    Raises:
        CalibrationError: neither form, truncated, or with numbers that cannot be.
    """
    try:
        with open_source(path, CalibrationError) as stream:
            is_gguf = stream.read(4) == MAGIC
            if not is_gguf:
                stream.seek(0)
                return _LegacyReader(stream, path).read()
        return _read_gguf(read_header(path))
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read: {error.strerror}") from error
    except GGUFError as error:
        raise CalibrationError(str(error)) from error


def write_importance(
    path: Path, matrix: ImportanceMatrix, *, exact: bool = False, extra: Mapping[str, Value] | None = None
) -> None:
    """Write llama.cpp's GGUF form, tensors in the order of their names.

    Args:
        path: the file; it appears only when it is whole.
        matrix: what to write.
        exact: sums as float64, for a run that is to go on; llama.cpp reads float32 only.
        extra: further metadata keys.

    Raises:
        ResourceError: the disk is too small.
    """
    kind = GGMLType.F64 if exact else GGMLType.F32
    tensors: dict[str, NDArray[np.float64]] = {}
    for name in sorted(matrix.entries):
        entry = matrix.entries[name]
        tensors[name + _SUMS] = entry.sums
        tensors[name + _COUNTS] = entry.counts[:, None].astype(np.float64)
    metadata = {
        keys.TYPE: string("imatrix"),
        "imatrix.datasets": array(ValueType.STRING, list(matrix.datasets)),
        "imatrix.chunk_count": u32(matrix.chunk_count),
        "imatrix.chunk_size": u32(matrix.chunk_size),
        **(extra or {}),
    }
    infos = [TensorInfo(name, values.shape, kind) for name, values in tensors.items()]
    with atomic_output(path) as stream:
        writer = GGUFWriter(stream, metadata, infos)
        writer.write_header()
        for name, values in tensors.items():
            writer.write(name, values.astype(_FLOATS[kind]).tobytes())
        writer.close()


def write_legacy(path: Path, matrix: ImportanceMatrix) -> None:
    """Write the older `.dat` form: means times calls, a call being a chunk; experts lose their own counts.

    Raises:
        ResourceError: the disk is too small.
    """
    with atomic_output(path) as stream:
        stream.write(struct.pack("<i", len(matrix.entries)))
        for name in sorted(matrix.entries):
            entry = matrix.entries[name]
            calls = -(-int(entry.counts.max()) // matrix.chunk_size)
            values = (entry.means.reshape(-1) * np.float32(calls)).astype("<f4")
            stream.write(_legacy_text(name) + struct.pack("<ii", calls, values.size) + values.tobytes())
        dataset = matrix.datasets[-1] if matrix.datasets else ""
        stream.write(struct.pack("<i", matrix.chunk_count) + _legacy_text(dataset))


def _legacy_text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<i", len(raw)) + raw


def importance_metadata(matrix: ImportanceMatrix, source: Path | None) -> dict[str, Value]:
    """The `quantize.imatrix.*` keys by which a quantised model names the matrix that was used, as llama.cpp does."""
    named = {"file": string("" if source is None else source.name)}
    if matrix.datasets:
        named["dataset"] = string(matrix.datasets[0])
    named |= {"entries_count": u32(len(matrix.entries)), "chunks_count": u32(matrix.chunk_count)}
    return {f"{keys.IMATRIX}{key}": value for key, value in named.items()}


def _read_gguf(header: GGUFHeader) -> ImportanceMatrix:
    where = header.path
    kind = header.get(keys.TYPE)
    if kind != "imatrix":
        raise CalibrationError(f"{where}: expected general.type imatrix, got {kind!r}")
    arrays = _read_arrays(header)
    names = [name.removesuffix(_SUMS) for name in arrays if name.endswith(_SUMS)]
    unpaired = set(arrays) ^ {name + suffix for name in names for suffix in (_SUMS, _COUNTS)}
    if unpaired or not names:
        raise CalibrationError(f"{where}: expected sums with counts, got {min(unpaired, default='nothing')!r} alone")
    entries = {name: _entry(name, arrays[name + _SUMS], arrays[name + _COUNTS], where) for name in names}
    datasets = header.get("imatrix.datasets", [])
    count, size = header.get("imatrix.chunk_count", 0), header.get("imatrix.chunk_size", _LEGACY_CHUNK)
    if type(count) is not int or type(size) is not int or size < 1 or not isinstance(datasets, list):
        raise CalibrationError(f"{where}: expected chunk_count and chunk_size to be counts, got {count!r} and {size!r}")
    return ImportanceMatrix(entries, count, size, tuple(map(str, datasets)))


def _read_arrays(header: GGUFHeader) -> dict[str, NDArray[np.float64]]:
    arrays = {}
    with open_source(header.path) as stream:
        for info in header.tensors:
            if info.type not in _FLOATS:
                raise CalibrationError(f"{header.path}: tensor '{info.name}': expected F32, got {info.type.name}")
            stream.seek(header.data_start + info.offset)
            raw = stream.read(info.nbytes)
            if len(raw) != info.nbytes:
                raise CalibrationError(f"{header.path}: tensor '{info.name}': the file became shorter")
            arrays[info.name] = np.frombuffer(raw, _FLOATS[info.type]).astype(np.float64).reshape(info.shape)
    return arrays


def _entry(name: str, sums: NDArray[np.float64], counts: NDArray[np.float64], where: Path) -> ImportanceEntry:
    """An entry, checked: finite, no negative sums or counts, a count for each matrix."""
    counts = counts.reshape(-1)
    if prod(sums.shape) % counts.size or not np.isfinite(sums).all() or not np.isfinite(counts).all():
        raise CalibrationError(f"{where}: tensor '{name}': expected finite sums for each of {counts.size} counts")
    if (sums < 0).any() or (counts < 0).any() or (counts > 2**53).any():
        raise CalibrationError(f"{where}: tensor '{name}': expected sums of squares and counts, got negative ones")
    return ImportanceEntry(sums.reshape(counts.size, -1), np.rint(counts).astype(np.int64))


class _LegacyReader:
    """The `.dat` form: entries of (name, calls, values), then calls in all and the dataset's name."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self.stream, self.path = stream, path
        self.left = path.stat().st_size

    def read(self) -> ImportanceMatrix:
        entries: dict[str, ImportanceEntry] = {}
        for number in range(self.count("entry count", 1, _MAX_ENTRIES)):
            name = self.text(f"name {number}")
            calls = self.count(f"tensor '{name}': calls", 0, 2**31 - 1)
            values = self.count(f"tensor '{name}': values", 1, self.left // 4)
            sums = np.frombuffer(self.take(4 * values, f"tensor '{name}'"), "<f4").astype(np.float64)
            if name in entries:
                raise CalibrationError(f"{self.path}: tensor '{name}' occurs twice")
            # values are means times calls; a call is a chunk
            counts = np.array([max(calls, 1) * _LEGACY_CHUNK], dtype=np.float64)
            entries[name] = _entry(name, sums[None] * _LEGACY_CHUNK, counts, self.path)
        chunks, datasets = 0, tuple[str, ...]()
        if self.left:
            chunks = self.count("chunk count", 0, 2**31 - 1)
            datasets = (self.text("dataset"),)
        return ImportanceMatrix(entries, chunks, _LEGACY_CHUNK, datasets)

    def take(self, count: int, what: str) -> bytes:
        if count > self.left:
            raise CalibrationError(f"{self.path}: {what}: expected {count} bytes, file ends after {self.left}")
        self.left -= count
        return self.stream.read(count)

    def count(self, what: str, low: int, high: int) -> int:
        (value,) = struct.unpack("<i", self.take(4, what))
        if not low <= value <= high:
            raise CalibrationError(f"{self.path}: {what}: expected {low} to {high}, got {value}")
        return int(value)

    def text(self, what: str) -> str:
        return self.take(self.count(what, 0, _MAX_NAME_BYTES), what).decode("utf-8", "replace")
