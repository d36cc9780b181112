"""Splits raw blocks into planes and joins them again, exactly, for any bytes; it executes rows of `layouts`.

The loops are the kernel `planes`', driven by the same rows.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import ArchiveError
from edgepack.kernels.native import library, pointer
from edgepack.packaging.coding.layouts import TAIL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edgepack.packaging.coding.block import Layout, Part, Plane

    Bytes = NDArray[np.uint8]

_NO_FLIP = (-1, 0)
_MOST_BLOCK_BYTES = 512  # the kernel's room


def plane_sizes(layout: Layout, raw_bytes: int) -> list[tuple[int, int]]:
    """(plane number, bytes) of every stream that a chunk of `raw_bytes` has in `layout`; empty planes are left out."""
    blocks, tail = divmod(raw_bytes, layout.block_bytes)
    sizes = [(number, blocks * plane.symbols) for number, plane in enumerate(layout.planes)] if blocks else []
    return [*sizes, (TAIL, tail)] if tail else sizes


def split(layout: Layout, raw: bytes | memoryview) -> list[Bytes]:
    """The streams of `raw`, in the order of `plane_sizes`."""
    source = np.frombuffer(raw, np.uint8)
    blocks, tail = divmod(len(source), layout.block_bytes)
    streams: list[Bytes] = []
    if blocks:
        streams = [source] if layout.block_bytes == 1 else _split_blocks(layout, source, blocks)
    return [*streams, source[-tail:]] if tail else streams


def join(layout: Layout, raw_bytes: int, streams: list[Bytes]) -> Bytes:
    """The inverse of `split`.

    Raises:
        ArchiveError: streams whose lengths do not fit `raw_bytes`.
    """
    expected = [size for _, size in plane_sizes(layout, raw_bytes)]
    if (got := [len(stream) for stream in streams]) != expected:
        raise ArchiveError(f"chunk of {raw_bytes} bytes, layout {layout.name}: expected streams {expected}, got {got}")
    blocks, tail = divmod(raw_bytes, layout.block_bytes)
    if layout.block_bytes == 1:
        return streams[0]
    target = np.empty(raw_bytes, np.uint8)
    if blocks:
        parts, whole = _parts(layout), [np.ascontiguousarray(stream) for stream in streams]
        places = _addresses(whole)
        library().edgepack_planes_join(
            pointer(target, "uint8_t *"), blocks, layout.block_bytes, pointer(parts, "const edgepack_part *"),
            len(parts), pointer(places, "const uint8_t *const *"),
        )  # fmt: skip
    if tail:
        target[-tail:] = streams[-1]
    return target


def _split_blocks(layout: Layout, source: Bytes, blocks: int) -> list[Bytes]:
    """One allocation for all streams: memory of this size comes fresh from the system, dearer than the work."""
    sizes = [blocks * plane.symbols for plane in layout.planes]
    streams = np.split(np.empty(sum(sizes), np.uint8), np.cumsum(sizes)[:-1])
    parts, places = _parts(layout), _addresses(streams)
    library().edgepack_planes_split(
        pointer(source, "const uint8_t *"), blocks, layout.block_bytes, pointer(parts, "const edgepack_part *"),
        len(parts), pointer(places, "uint8_t *const *"),
    )  # fmt: skip
    return streams


def _addresses(streams: list[Bytes]) -> NDArray[np.uintp]:
    """Where streams begin; they must outlive the call."""
    return np.array([stream.ctypes.data for stream in streams], np.uintp)


@lru_cache(64)
def _parts(layout: Layout) -> NDArray[np.int32]:
    """The layout's parts as the kernel reads them, int32 [parts, 11].

    Raises:
        ValueError: a part leaves its block or its byte: the kernel trusts these rows.
    """
    opened: set[int] = set()
    rows = [row for number, plane in enumerate(layout.planes) for row in _rows(number, plane, opened)]
    if layout.block_bytes > _MOST_BLOCK_BYTES:
        raise ValueError(f"layout {layout.name}: expected blocks of at most {_MOST_BLOCK_BYTES} bytes")
    if layout.block_bytes in {2, 4} and any(row[2] > 1 for row in rows):
        raise ValueError(f"layout {layout.name}: expected columns of one symbol in a block of two or four bytes")
    for _stream, _before, count, offset, shift, width, position, flip_offset, flip_bit, _first, _opens in rows:
        inside = 0 <= offset <= layout.block_bytes - count and flip_offset <= layout.block_bytes - count
        if not inside or count < 1 or width < 1 or not max(shift, position) + width <= 8 or not 0 <= flip_bit < 8:
            raise ValueError(f"layout {layout.name}: a part of {count} bytes at {offset} leaves its block or its byte")
    found = np.array(rows, np.int32)
    found.setflags(write=False)
    return found


def _rows(stream: int, plane: Plane, opened: set[int]) -> Iterator[tuple[Any, ...]]:
    """Rows of a plane; `opened` are the offsets of fields that earlier parts wrote to."""
    before = 0
    for column in plane.columns:
        position = 0
        for part in column.parts:
            place = (stream, before, column.count, part.offset, part.shift, part.width, position)
            yield *place, *_flip(part), int(position == 0), int(part.offset not in opened)
            opened.add(part.offset)
            position += part.width
        before += column.count


def _flip(part: Part) -> tuple[int, int]:
    return _NO_FLIP if part.flip is None else (part.flip.offset, part.flip.bit)
