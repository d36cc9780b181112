"""Reads tensors from one safetensors file that may be truncated or hostile.

Bytes are read with `pread`, not mapped, or by ranges from where a URL leads: memory stays bounded by the rows that
were asked for, and a file that shrinks under us is an error, not a SIGBUS. Which files make a model is left to
`export.checkpoint`.
Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from edgepack.errors import CheckpointError
from edgepack.file_kinds import HEAD_BYTES, describe, is_pointer
from edgepack.files.source import as_object, open_descriptor
from edgepack.gguf.types import GGMLType
from edgepack.model import TensorSpec
from edgepack.quant.codecs.ggml.codec import widen

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.files.remote import RemoteFile

_MAX_DIMENSIONS = 64  # torch's and numpy's limit
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
# safetensors' dtype → (our spelling, bytes an element)
DTYPES: dict[str, tuple[str, int]] = {
    "F64": ("f64", 8),
    "F32": ("f32", 4),
    "F16": ("f16", 2),
    "BF16": ("bf16", 2),
    "F8_E4M3": ("f8_e4m3", 1),
    "F8_E5M2": ("f8_e5m2", 1),
    "F8_E8M0": ("f8_e8m0", 1),
    "I64": ("i64", 8),
    "I32": ("i32", 4),
    "I16": ("i16", 2),
    "I8": ("i8", 1),
    "U64": ("u64", 8),
    "U32": ("u32", 4),
    "U16": ("u16", 2),
    "U8": ("u8", 1),
    "BOOL": ("bool", 1),
}
ITEM_BYTES = dict(DTYPES.values())
_HALF = {"bf16": GGMLType.BF16, "f16": GGMLType.F16}
_WHOLE = {"f32": "<f4", "f64": "<f8"}


@dataclass(frozen=True)
class _Entry:
    spec: TensorSpec
    start: int  # in the file
    stop: int  # not included


class SafetensorsFile:
    """One open safetensors file: a `TensorSource` that also gives raw bytes. Thread-safe.

    Args:
        path: the file; of a remote one its name alone counts.
        remote: where it lies, if not there.

    Raises:
        CheckpointError: not a safetensors file, truncated, or with ranges that contradict shapes.
        NetworkError: a remote one cannot be read.
    """

    def __init__(self, path: Path, remote: RemoteFile | None = None) -> None:
        self.path, self._remote = path, remote
        self._where = str(path) if remote is None else remote.url
        self._descriptor = -1
        try:
            if remote is None:
                self._descriptor = open_descriptor(path, CheckpointError)
            self._bytes = os.fstat(self._descriptor).st_size if remote is None else remote.size
            self._entries = self._read_entries()
            self._specs = {name: entry.spec for name, entry in self._entries.items()}
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error

    def __reduce__(self) -> tuple[type[SafetensorsFile], tuple[Path, RemoteFile | None]]:
        """Another process opens the file anew, under the same name."""
        return SafetensorsFile, (self.path, self._remote)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor, in the file's order."""
        return self._specs

    def _read_entries(self) -> dict[str, _Entry]:
        head = self._at(0, HEAD_BYTES)
        if is_pointer(head):
            raise CheckpointError(f"{self._where}: expected safetensors, got {describe(head)}")
        if self._bytes < 8:
            raise CheckpointError(f"{self._where}: expected a header of 8 bytes, file ends after {self._bytes}")
        length = int.from_bytes(head[:8], "little")
        left = self._bytes - 8
        if length > min(left, _MAX_HEADER_BYTES):
            what = describe(head) if length > _MAX_HEADER_BYTES else None
            got = f"; it looks like {what}" if what else ""
            raise CheckpointError(f"{self._where}: header: expected {length} bytes, file ends after {left}{got}")
        header = _parse_header(self._at(8, length), self._where)
        entries = {name: self._entry(name, item, 8 + length) for name, item in header.items()}
        _check_cover(entries, 8 + length, self._bytes, self._where)
        return entries

    def _at(self, start: int, length: int) -> bytes:
        """Bytes of the file, fewer at its end."""
        if self._remote is None:
            return os.pread(self._descriptor, length, start)
        return self._remote.read(start, min(length, max(0, self._bytes - start)))

    def _entry(self, name: str, item: Any, origin: int) -> _Entry:
        where = f"{self._where}: tensor '{name}'"
        if not isinstance(item, dict) or item.get("dtype") not in DTYPES:
            got = item.get("dtype") if isinstance(item, dict) else item
            raise CheckpointError(f"{where}: unknown dtype {got!r}")
        shape, offsets = item.get("shape"), item.get("data_offsets")
        if not _is_counts(shape) or not _is_counts(offsets) or len(offsets) != 2:
            raise CheckpointError(f"{where}: expected a shape and two data offsets, got {shape!r} and {offsets!r}")
        if len(shape) > _MAX_DIMENSIONS:
            raise CheckpointError(f"{where}: expected at most {_MAX_DIMENSIONS} dimensions, got {len(shape)}")
        dtype, item_bytes = DTYPES[item["dtype"]]
        expected, got = prod(shape) * item_bytes, offsets[1] - offsets[0]
        if expected != got:
            raise CheckpointError(f"{where}: shape {shape} in {dtype} needs {expected} bytes, its range has {got}")
        if origin + offsets[1] > self._bytes:
            left = max(0, self._bytes - origin - offsets[0])
            raise CheckpointError(f"{where}: expected {expected} bytes, file ends after {left}")
        return _Entry(TensorSpec(name, tuple(shape), dtype), origin + offsets[0], origin + offsets[1])

    def read_bytes(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes `start` (included) to `stop` (not included) of tensor `name`; uint8, owned by the caller.

        Raises:
            CheckpointError: no such tensor, or the file has become shorter.
        """
        if name not in self._entries:
            raise CheckpointError(f"{self._where}: no tensor '{name}'")
        entry = self._entries[name]
        if self._remote is not None:
            return self._fetched(name, entry.start + start, stop - start)
        out = np.empty(stop - start, dtype=np.uint8)
        view, done = out.data, 0
        while done < len(view):
            got = os.preadv(self._descriptor, [view[done:]], entry.start + start + done)
            if got == 0:
                raise CheckpointError(f"{self._where}: tensor '{name}': the file became shorter while it was read")
            done += got
        return out

    def _fetched(self, name: str, start: int, length: int) -> NDArray[np.uint8]:
        raw = self._at(start, length)
        if len(raw) != length:
            raise CheckpointError(f"{self._where}: tensor '{name}': the file became shorter while it was read")
        return np.array(np.frombuffer(raw, dtype=np.uint8))

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `TensorSource.read_rows`, for f32, f64, f16 and bf16.

        Raises:
            CheckpointError: the tensor holds integers or 8-bit floats, which mean nothing without scales.
        """
        spec = self.specs_of(name)
        row_bytes = spec.columns * ITEM_BYTES[spec.dtype]
        raw = self.read_bytes(name, start * row_bytes, stop * row_bytes)
        if spec.dtype in _WHOLE:
            whole = np.frombuffer(raw, _WHOLE[spec.dtype]).reshape(stop - start, spec.columns)
            return whole.astype(np.float32, copy=False)
        if spec.dtype not in _HALF:
            raise CheckpointError(f"{self._where}: tensor '{name}': expected floats, got {spec.dtype}")
        out = np.empty((stop - start, spec.columns), dtype=np.float32)
        widen(_HALF[spec.dtype], raw, out)
        return out

    def specs_of(self, name: str) -> TensorSpec:
        """The spec of one tensor; raises CheckpointError when there is none."""
        if name not in self._entries:
            raise CheckpointError(f"{self._where}: no tensor '{name}'")
        return self._entries[name].spec


def _parse_header(raw: bytes, path: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise CheckpointError(f"{path}: header: '{twice}' occurs twice")
        return found

    try:
        header = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: header is not JSON: {error}") from error
    found = as_object(header, f"{path}: header", CheckpointError)
    found.pop("__metadata__", None)
    return found


def _is_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_cover(entries: Mapping[str, _Entry], start: int, stop: int, path: str) -> None:
    """Every byte behind the header belongs to one tensor, as safetensors' own library asks.

    Raises:
        CheckpointError: tensors share bytes, or some belong to none.
    """
    end = start
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.stop)):
        if entry.start < end:
            raise CheckpointError(f"{path}: tensor '{entry.spec.name}' overlaps the tensor before it")
        if entry.start > end:
            hole = entry.start - end
            raise CheckpointError(f"{path}: tensor '{entry.spec.name}': {hole} bytes before it belong to no tensor")
        end = entry.stop
    if end != stop:
        raise CheckpointError(f"{path}: {stop - end} bytes behind the last tensor belong to none")
