"""Primitives and values of a GGUF, read from bytes that may end anywhere. What they mean is left to `reader`."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from edgepack.errors import GGUFError
from edgepack.gguf.types import Value, ValueType

if TYPE_CHECKING:
    import mmap
    from pathlib import Path


_MAX_ARRAY_DEPTH = 4

# Of all arrays of a header together: each item becomes a Python object. A vocabulary of a million tokens with scores,
# types and merges stays below.
_MAX_ITEMS = 1 << 22

_ITEMS_OF_AN_ARRAY = 16  # what an array in an array counts for: it becomes three objects

SCALARS: dict[ValueType, struct.Struct] = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: struct.Struct("<I"),
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.BOOL: struct.Struct("<?"),
    ValueType.UINT64: struct.Struct("<Q"),
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}


class Cursor:
    """Reads primitives from a buffer and refuses to read beyond its end."""

    def __init__(self, buffer: bytes | mmap.mmap | memoryview, label: Path) -> None:
        self.buffer = memoryview(buffer)
        self.label = label
        self.position = 0
        self.items = 0

    def take(self, count: int, what: str) -> memoryview:
        """The next `count` bytes."""
        left = len(self.buffer) - self.position
        if count > left:
            raise GGUFError(f"{self.label}: {what}: expected {count} bytes at {self.position}, file ends after {left}")
        view = self.buffer[self.position : self.position + count]
        self.position += count
        return view

    def scalar(self, kind: ValueType, what: str) -> Any:
        """A number or a boolean."""
        layout = SCALARS[kind]
        if kind is ValueType.BOOL:
            return self.take(1, what)[0] != 0
        return layout.unpack(self.take(layout.size, what))[0]

    def count(self, what: str, item_bytes: int) -> int:
        """A 64-bit count of items of at least `item_bytes` each, which must fit into what is left."""
        count = int(self.scalar(ValueType.UINT64, what))
        left = len(self.buffer) - self.position
        if count > left // item_bytes:
            raise GGUFError(f"{self.label}: {what}: got {count}, but only {left} bytes are left")
        return count

    def array_count(self, what: str, item_bytes: int, weight: int = 1) -> int:
        """The count of an array's items, as `count`; all arrays of a header together have at most 2²² items."""
        count = self.count(what, item_bytes)
        self.items += weight * count
        if self.items > _MAX_ITEMS:
            raise GGUFError(f"{self.label}: {what}: expected at most {_MAX_ITEMS} items in all arrays, got more")
        return count

    def check_length(self, what: str, most: int) -> None:
        """Refuse a string of more than `most` bytes before it is read."""
        length = SCALARS[ValueType.UINT64].unpack(
            bytes(self.buffer[self.position : self.position + 8]).ljust(8, b"\0")
        )[0]
        if length > most:
            raise GGUFError(f"{self.label}: {what}: expected at most {most} bytes, got {length}")

    def string(self, what: str) -> str:
        """A length-prefixed string; bytes that are not UTF-8 survive as surrogates."""
        return bytes(self.take(self.count(what, 1), what)).decode("utf-8", "surrogateescape")

    def kind(self, what: str) -> ValueType:
        """The tag of a value."""
        number = self.scalar(ValueType.UINT32, what)
        try:
            return ValueType(number)
        except ValueError:
            raise GGUFError(f"{self.label}: {what}: unknown value type {number}") from None

    def value(self, kind: ValueType, what: str, depth: int = 0) -> tuple[Any, ValueType | None]:
        """A value of `kind` and, for an array, its element type."""
        if kind is ValueType.STRING:
            return self.string(what), None
        if kind is not ValueType.ARRAY:
            return self.scalar(kind, what), None
        if depth == _MAX_ARRAY_DEPTH:
            raise GGUFError(f"{self.label}: {what}: arrays nested deeper than {_MAX_ARRAY_DEPTH}")
        item = self.kind(what)
        return self._items(item, what, depth), item

    def _strings(self, count: int, what: str) -> list[str]:
        """`string` for a whole vocabulary, in one loop: a start of the program reads hundreds of thousands."""
        buffer, position, end = self.buffer, self.position, len(self.buffer)
        unpack, size = SCALARS[ValueType.UINT64].unpack_from, SCALARS[ValueType.UINT64].size
        found = []
        for _ in range(count):
            start = position + size
            length = unpack(buffer, position)[0] if start <= end else 0
            position = start + length
            if position > end:
                left = max(end - start, 0)
                raise GGUFError(
                    f"{self.label}: {what}: expected {length or size} bytes at {start}, file ends after {left}"
                )
            found.append(str(buffer[start:position], "utf-8", "surrogateescape"))
        self.position = position
        return found

    def _items(self, item: ValueType, what: str, depth: int) -> list[Any]:
        if item is ValueType.STRING:
            return self._strings(self.array_count(what, 8), what)
        if item is ValueType.ARRAY:
            return [
                Value(item, *self.value(item, what, depth + 1))
                for _ in range(self.array_count(what, 12, _ITEMS_OF_AN_ARRAY))
            ]
        layout = SCALARS[item]
        count = self.array_count(what, layout.size)
        raw = self.take(count * layout.size, what)
        if item is ValueType.BOOL:
            return [byte != 0 for byte in raw]
        return list(struct.unpack(f"<{count}{layout.format[-1]}", raw))
