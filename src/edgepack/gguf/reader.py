"""Reads the header of a GGUF that may be truncated or hostile; it never reads tensor data into memory.

Every count, length and offset is checked against the bytes that are left before it is used. Meaning of
keys and tensors is left to the caller.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgepack.errors import GGUFError
from edgepack.file_kinds import HEAD_BYTES, describe, is_big_endian
from edgepack.files.source import open_source
from edgepack.gguf import keys
from edgepack.gguf.cursor import Cursor
from edgepack.gguf.types import GGMLType, TensorInfo, Value, ValueType

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20  # a page of any machine is less; sums with it stay far from 2⁶⁴
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_MAX_KEYS, _MAX_TENSORS = 1 << 15, 1 << 16
MAX_TEMPLATE_CHARACTERS = 256 << 10
"""Of the chat template that a model is run with, and so of one that is exported."""

_MAX_TEMPLATE_BYTES = 1 << 20  # of a chat template; the longest published ones have about 20,000


@dataclass(frozen=True)
class GGUFHeader:
    """All of a GGUF but the tensor data.

    Attributes:
        path: the file (or a label for messages).
        version: 2 or 3.
        metadata: key → value, in file order.
        tensors: in file order, with offsets.
        alignment: of every tensor's offset.
        data_start: where the data section begins in the file.
        file_bytes: length of the whole file.
    """

    path: Path
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_start: int
    file_bytes: int
    _by_name: Mapping[str, TensorInfo] = field(default_factory=dict, repr=False)

    @property
    def trailing_bytes(self) -> int:
        """Bytes behind the last tensor and its padding, which no reader looks at; safetensors' library refuses such."""
        end = self.data_start + max((tensor.offset + tensor.nbytes for tensor in self.tensors), default=0)
        return max(0, self.file_bytes - -(-end // self.alignment) * self.alignment)

    def tensor(self, name: str) -> TensorInfo:
        """The tensor called `name`; raises GGUFError when there is none."""
        try:
            return self._by_name[name]
        except KeyError:
            raise GGUFError(f"{self.path}: no tensor '{name}'") from None

    def get(self, key: str, default: Any = None) -> Any:
        """The plain value of `key`, or `default`."""
        value = self.metadata.get(key)
        return default if value is None else value.value


def read_header(path: Path) -> GGUFHeader:
    """Read and check the header of the GGUF at `path`.

    Raises:
        GGUFError: not a GGUF, truncated anywhere (tensor data included), or inconsistent.
    """
    try:
        with open_source(path, GGUFError) as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise GGUFError(f"{path}: expected a GGUF, got an empty file")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
                return parse_header(buffer, path)
    except (OSError, ValueError) as error:
        raise GGUFError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def parse_header(buffer: bytes | mmap.mmap, label: Path, file_bytes: int | None = None) -> GGUFHeader:
    """Parse the header at the start of `buffer`.

    Args:
        buffer: the file, or at least its header.
        label: names the file in messages.
        file_bytes: length of the whole file where `buffer` holds only its beginning.

    Raises:
        GGUFError: as `read_header`.
    """
    cursor = Cursor(buffer, label)
    try:
        return _parse(cursor, len(cursor.buffer) if file_bytes is None else file_bytes)
    finally:
        cursor.buffer.release()


def _parse(cursor: Cursor, file_bytes: int) -> GGUFHeader:
    head = bytes(cursor.buffer[:HEAD_BYTES])
    if (magic := bytes(cursor.take(4, "magic"))) != MAGIC:
        raise GGUFError(f"{cursor.label}: expected magic {MAGIC!r} of a GGUF, got {describe(head) or repr(magic)}")
    if (version := cursor.scalar(ValueType.UINT32, "version")) not in VERSIONS:
        got = describe(head) if is_big_endian(head) else version
        raise GGUFError(f"{cursor.label}: expected GGUF version 2 or 3, got {got}")
    n_tensors = cursor.count("tensor count", 24)
    n_metadata = cursor.count("metadata count", 13)
    if n_metadata > _MAX_KEYS or n_tensors > _MAX_TENSORS:
        most = f"{_MAX_KEYS} metadata keys and {_MAX_TENSORS} tensors"
        raise GGUFError(f"{cursor.label}: expected at most {most}, got {n_metadata} and {n_tensors}")
    metadata = _read_metadata(cursor, n_metadata)
    tensors = [_read_tensor_info(cursor) for _ in range(n_tensors)]
    alignment = _alignment(metadata, cursor.label)
    data_start = -(-cursor.position // alignment) * alignment
    by_name = {tensor.name: tensor for tensor in tensors}
    if len(by_name) != len(tensors):
        raise GGUFError(f"{cursor.label}: a tensor name occurs twice")
    _check_ranges(tensors, alignment, file_bytes - data_start, cursor.label)
    return GGUFHeader(cursor.label, version, metadata, tuple(tensors), alignment, data_start, file_bytes, by_name)


def _read_metadata(cursor: Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for number in range(count):
        key = cursor.string(f"metadata key {number}")
        if not key:
            raise GGUFError(f"{cursor.label}: metadata key {number} is empty")
        if key in metadata:
            raise GGUFError(f"{cursor.label}: metadata key '{key}' occurs twice")
        kind = cursor.kind(f"metadata '{key}'")
        if key == keys.CHAT_TEMPLATE and kind is ValueType.STRING:
            cursor.check_length(f"metadata '{key}'", _MAX_TEMPLATE_BYTES)
        metadata[key] = Value(kind, *cursor.value(kind, f"metadata '{key}'"))
    return metadata


def _read_tensor_info(cursor: Cursor) -> TensorInfo:
    name = cursor.string("tensor name")
    what = f"tensor '{name}'"
    n_dims = cursor.scalar(ValueType.UINT32, what)
    if not 1 <= n_dims <= _MAX_DIMENSIONS:
        raise GGUFError(f"{cursor.label}: {what}: expected 1 to {_MAX_DIMENSIONS} dimensions, got {n_dims}")
    ne = [cursor.scalar(ValueType.UINT64, what) for _ in range(n_dims)]
    number = cursor.scalar(ValueType.UINT32, what)
    offset = cursor.scalar(ValueType.UINT64, what)
    try:
        kind = GGMLType(number)
    except ValueError:
        raise GGUFError(f"{cursor.label}: {what}: unknown tensor type {number}") from None
    if any(not 0 < n < 2**63 for n in ne):
        raise GGUFError(f"{cursor.label}: {what}: expected positive dimensions, got {ne}")
    if ne[0] % kind.block_size:
        raise GGUFError(
            f"{cursor.label}: {what}: type {kind.name} needs rows of a multiple of {kind.block_size}, got {ne[0]}"
        )
    return TensorInfo(name, tuple(reversed(ne)), kind, offset)


def _alignment(metadata: Mapping[str, Value], label: Path) -> int:
    value = metadata.get(keys.ALIGNMENT)
    if value is None:
        return DEFAULT_ALIGNMENT
    alignment = value.value
    if (
        value.type is not ValueType.UINT32
        or alignment == 0
        or alignment & (alignment - 1)
        or alignment > _MAX_ALIGNMENT
    ):
        raise GGUFError(f"{label}: general.alignment: expected a power of two as uint32, got {alignment!r}")
    return int(alignment)


def _check_ranges(tensors: list[TensorInfo], alignment: int, data_bytes: int, label: Path) -> None:
    """Offsets are aligned, inside the file, without holes (llama.cpp has none), and no two tensors share bytes."""
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset % alignment:
            raise GGUFError(f"{label}: tensor '{tensor.name}': offset {tensor.offset} is not a multiple of {alignment}")
        if tensor.offset < end:
            raise GGUFError(f"{label}: tensor '{tensor.name}' overlaps the tensor before it")
        if tensor.offset >= end + alignment:
            hole = tensor.offset - end
            raise GGUFError(f"{label}: tensor '{tensor.name}': {hole} bytes before it belong to no tensor")
        end = tensor.offset + tensor.nbytes
        if end > data_bytes:
            left = max(0, data_bytes - tensor.offset)
            raise GGUFError(f"{label}: tensor '{tensor.name}': expected {tensor.nbytes} bytes, file ends after {left}")
