"""Writes a GGUF in one streaming pass: header first, then each tensor's bytes in the announced order.

All sizes are known before the first byte is written, so a plan is exact. What the bytes are is left to the
caller.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO

from edgepack.errors import GGUFError
from edgepack.gguf import keys
from edgepack.gguf.cursor import SCALARS
from edgepack.gguf.reader import DEFAULT_ALIGNMENT, MAGIC
from edgepack.gguf.types import TensorInfo, Value, ValueType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_VERSION = 3


def _encode_string(text: str) -> bytes:
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can hold and UTF-8 cannot
        raise GGUFError(f"a text of the metadata: expected characters, got {text[error.start]!r} in it") from None
    return struct.pack("<Q", len(raw)) + raw


def _encode(kind: ValueType, value: Any, item_type: ValueType | None) -> bytes:
    if kind is ValueType.STRING:
        return _encode_string(value)
    if kind is not ValueType.ARRAY:
        return SCALARS[kind].pack(value)
    assert item_type is not None
    head = struct.pack("<IQ", item_type, len(value))
    if item_type is ValueType.STRING:
        return head + b"".join(map(_encode_string, value))
    if item_type is ValueType.ARRAY:
        return head + b"".join(_encode(ValueType.ARRAY, inner.value, inner.item_type) for inner in value)
    return head + struct.pack(f"<{len(value)}{SCALARS[item_type].format[-1]}", *value)


def _encode_value(key: str, value: Value) -> bytes:
    """A value's bytes; raises GGUFError where its type cannot hold it."""
    try:
        return _encode(value.type, value.value, value.item_type)
    except (OverflowError, struct.error) as error:
        raise GGUFError(f"metadata key '{key}': {value.type.name.lower()} cannot hold its value: {error}") from None


def padding(count: int, alignment: int) -> int:
    """Bytes from `count` to the next multiple of `alignment`."""
    return -count % alignment


def place_tensors(tensors: Sequence[TensorInfo], alignment: int = DEFAULT_ALIGNMENT) -> tuple[TensorInfo, ...]:
    """The same tensors with offsets one after the other, each aligned."""
    placed, offset = [], 0
    for tensor in tensors:
        placed.append(replace(tensor, offset=offset))
        offset += tensor.nbytes + padding(tensor.nbytes, alignment)
    return tuple(placed)


def encode_header(metadata: Mapping[str, Value], tensors: Sequence[TensorInfo], alignment: int) -> bytes:
    """Everything before the data section, padding included; offsets are written as `tensors` hold them.

    Raises:
        GGUFError: a value that its type cannot hold, or half of a surrogate pair in a text.
    """
    parts = [MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_encode_string(key), struct.pack("<I", value.type), _encode_value(key, value)]
    for tensor in tensors:
        ne = tuple(reversed(tensor.shape))
        parts.append(_encode_string(tensor.name))
        parts.append(struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, tensor.type, tensor.offset))
    header = b"".join(parts)
    return header + bytes(padding(len(header), alignment))


class GGUFWriter:
    """A state machine: `write_header`, then for each tensor in order `write` until it is full, then `close`.

    Args:
        stream: where bytes go; only written to, never sought.
        metadata: all keys; `general.alignment` is honoured.
        tensors: in file order; their offsets are computed here.
    """

    def __init__(self, stream: BinaryIO, metadata: Mapping[str, Value], tensors: Sequence[TensorInfo]) -> None:
        alignment = metadata.get(keys.ALIGNMENT)
        self._alignment = DEFAULT_ALIGNMENT if alignment is None else int(alignment.value)
        self._stream = stream
        self.tensors = place_tensors(tensors, self._alignment)
        self._header = encode_header(metadata, self.tensors, self._alignment)
        self._next = -1  # -1: the header is due; else the index of the tensor that is due
        self._written = 0

    @property
    def total_bytes(self) -> int:
        """Exact length of the finished file."""
        return self.length_after(len(self.tensors))

    @property
    def alignment(self) -> int:
        """Of every tensor's first byte within the data section."""
        return self._alignment

    @property
    def data_start(self) -> int:
        """Where the data section begins."""
        return len(self._header)

    def write_header(self) -> None:
        """Write everything before the data section."""
        if self._next != -1:
            raise GGUFError("GGUF writer: the header is already written")
        self._stream.write(self._header)
        self._next = 0

    def resume_after(self, count: int) -> int:
        """Take the header and the first `count` tensors as written; gives the length that the stream must have."""
        if self._next != -1:
            raise GGUFError("GGUF writer: writing has begun already")
        if not 0 <= count <= len(self.tensors):
            raise GGUFError(f"GGUF writer: expected at most {len(self.tensors)} tensors, got {count}")
        self._next = count
        return self.length_after(count)

    def length_after(self, count: int) -> int:
        """Length of the file when `count` tensors and their padding are written."""
        return len(self._header) + sum(t.nbytes + padding(t.nbytes, self._alignment) for t in self.tensors[:count])

    @property
    def header(self) -> bytes:
        """Everything before the data section."""
        return self._header

    @property
    def tensors_written(self) -> int:
        """Whole tensors so far."""
        return max(self._next, 0)

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Append bytes to tensor `name`, which must be the one that is due.

        Raises:
            GGUFError: called out of order, or more bytes than the tensor has.
        """
        if not 0 <= self._next < len(self.tensors):
            raise GGUFError(f"GGUF writer: tensor '{name}' is not due: {self._expected()}")
        due = self.tensors[self._next]
        if due.name != name:
            raise GGUFError(f"GGUF writer: expected tensor '{due.name}', got '{name}'")
        count = memoryview(data).nbytes
        if self._written + count > due.nbytes:
            raise GGUFError(f"tensor '{name}': expected {due.nbytes} bytes, got {self._written + count}")
        self._stream.write(data)
        self._written += count
        if self._written == due.nbytes:
            self._stream.write(bytes(padding(due.nbytes, self._alignment)))
            self._next, self._written = self._next + 1, 0

    def close(self) -> None:
        """Check that every tensor is whole; the stream stays open."""
        if self._next != len(self.tensors):
            raise GGUFError(f"GGUF writer: closed too early: {self._expected()}")

    def _expected(self) -> str:
        if self._next == -1:
            return "the header is due"
        if self._next == len(self.tensors):
            return "all tensors are written"
        due = self.tensors[self._next]
        return f"tensor '{due.name}' is due, {due.nbytes - self._written} bytes missing"
