"""Reads the protobuf wire format, as much of it as `tokenizer.model` uses; it knows no message.

Encoding: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from edgepack.errors import TokenizerError

if TYPE_CHECKING:
    from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES = 10

Field = int | bytes
"""A varint's value, or the bytes of everything else."""


def read_varint(buffer: bytes, offset: int) -> tuple[int, int]:
    """The varint at `offset` and the offset behind it.

    Raises:
        TokenizerError: it is longer than ten bytes or than the buffer.
    """
    value = 0
    for index, byte in enumerate(buffer[offset : offset + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & (1 << 64) - 1, offset + index + 1
    raise TokenizerError(f"protobuf: expected a varint at byte {offset}, got one without an end")


def read_fields(buffer: bytes) -> Iterator[tuple[int, Field]]:
    """Every field of a message in order: number and value.

    Raises:
        TokenizerError: the message is truncated or uses a wire type that protobuf no longer has.
    """
    offset = 0
    while offset < len(buffer):
        start = offset
        tag, offset = read_varint(buffer, offset)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise TokenizerError(f"protobuf: expected a field number at byte {start}, got 0")
        if wire == _VARINT:
            value, offset = read_varint(buffer, offset)
            yield number, value
            continue
        if wire == _BYTES:
            length, offset = read_varint(buffer, offset)
        elif wire in _FIXED_BYTES:
            length = _FIXED_BYTES[wire]
        else:
            raise TokenizerError(f"protobuf: expected wire type 0, 1, 2 or 5 at byte {start}, got {wire}")
        if length > len(buffer) - offset:
            raise TokenizerError(f"protobuf: expected {length} bytes at byte {offset}, got {len(buffer) - offset}")
        yield number, buffer[offset : offset + length]
        offset += length


def as_bytes(value: Field, what: str) -> bytes:
    """A field that must be a string or a message."""
    if isinstance(value, int):
        raise TokenizerError(f"{what}: expected bytes, got the number {value}")
    return value


def as_text(value: Field, what: str) -> str:
    """A field that must be UTF-8 text."""
    try:
        return as_bytes(value, what).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{what}: expected UTF-8, got byte {error.object[error.start]:#04x}") from None


def as_int(value: Field, what: str) -> int:
    """A field that must be an int32, an enum or a bool."""
    if not isinstance(value, int):
        raise TokenizerError(f"{what}: expected a number, got {len(value)} bytes")
    return value - (1 << 64) if value >> 63 else value


def as_float(value: Field, what: str) -> float:
    """A field that must be a float."""
    raw = as_bytes(value, what)
    if len(raw) != _FIXED_BYTES[_FIXED32]:
        raise TokenizerError(f"{what}: expected a float of 4 bytes, got {len(raw)}")
    return float(struct.unpack("<f", raw)[0])
