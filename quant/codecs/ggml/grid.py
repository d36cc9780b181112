"""The grid that a quantised ggml block spans, and other integers put in the place of its own.

Scales are left as they are: choosing them is ggml's own business (`quant.codecs.ggml.codec`). Layouts are those of
the structs in ggml-common.h; every value equals scale · q + offset. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CodecError
from edgepack.gguf.types import GGMLType

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Bytes = NDArray[Any]  # uint8; numpy's stubs lose the type at every shift
    Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """What each group of consecutive weights in a row may be.

    Attributes:
        scale: float32 [rows, groups].
        offset: float32 [rows, groups].
        group: weights in a group.
        lowest: the least integer, included.
        highest: the greatest integer, included.
    """

    scale: NDArray[np.float32]
    offset: NDArray[np.float32]
    group: int
    lowest: int
    highest: int

    def values(self, quants: NDArray[np.int8]) -> NDArray[np.float32]:
        """Weights [rows, columns] of integers of the same shape."""
        scale, offset = (np.repeat(array, self.group, axis=1) for array in (self.scale, self.offset))
        return np.asarray(scale * quants + offset, dtype=np.float32)


@dataclass(frozen=True)
class _Layout:
    """How one type keeps its scales and integers; functions work on blocks [n, bytes of a block]."""

    group: int
    lowest: int
    highest: int
    scales: Callable[[Bytes], tuple[Floats, Floats]]  # → scale, offset, each [n, groups]
    pack: Callable[[Bytes, NDArray[np.uint8]], None]  # q - lowest into the blocks; modifies the blocks


def _half(blocks: Bytes, start: int) -> Floats:
    """A float16 field as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def _nibbles(low: Bytes, high: Bytes) -> Bytes:
    return (low & 15) | (high << 4)


def _simple_scales(has_minimum: bool) -> Callable[[Bytes], tuple[Floats, Floats]]:
    """One scale a block, followed by a minimum or not."""

    def scales(blocks: Bytes) -> tuple[Floats, Floats]:
        scale = _half(blocks, 0)
        return scale, _half(blocks, 2) if has_minimum else np.zeros_like(scale)

    return scales


def _six_bit_pairs(packed: Bytes) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Scales and minima of Q4_K and Q5_K, 6 bits each: [n, 12] → two of [n, 8]."""
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scale = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
    minimum = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scale, minimum


def _k4_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    scale, minimum = _six_bit_pairs(blocks[:, 4:16])
    return _half(blocks, 0) * scale, -(_half(blocks, 2) * minimum)


def _q2_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    packed = blocks[:, :16]
    return _half(blocks, 80) * (packed & 15), -(_half(blocks, 82) * (packed >> 4))


def _q3_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    packed = blocks[:, 96:108]
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    high = np.concatenate([(packed[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1)
    scale = _half(blocks, 108) * ((low | (high << 4)).astype(np.float32) - 32)
    return scale, np.zeros_like(scale)


def _q6_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    scale = _half(blocks, 208) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return scale, np.zeros_like(scale)


def _pack_halves(start: int) -> Callable[[Bytes, Bytes], None]:
    def pack(blocks: Bytes, quants: Bytes) -> None:
        blocks[:, start : start + 16] = _nibbles(quants[:, :16], quants[:, 16:])

    return pack


def _pack_q5(start: int) -> Callable[[Bytes, Bytes], None]:
    def pack(blocks: Bytes, quants: Bytes) -> None:
        blocks[:, start : start + 4] = np.packbits(quants >> 4, axis=1, bitorder="little")
        _pack_halves(start + 4)(blocks, quants & 15)

    return pack


def _pack_q8(blocks: Bytes, quants: Bytes) -> None:
    blocks[:, 2:34] = quants - np.uint8(128)


def _pack_nibble_runs(quants: Bytes, run: int) -> Bytes:
    runs = quants.reshape(len(quants), -1, 2, run)
    return _nibbles(runs[:, :, 0], runs[:, :, 1]).reshape(len(quants), -1)


def _pack_q4k(blocks: Bytes, quants: Bytes) -> None:
    blocks[:, 16:144] = _pack_nibble_runs(quants, 32)


def _pack_bit_planes(bits: Bytes) -> Bytes:
    planes = bits.reshape(len(bits), 8, 32)
    return np.asarray(np.bitwise_or.reduce([planes[:, bit] << bit for bit in range(8)], axis=0))


def _pack_q5k(blocks: Bytes, quants: Bytes) -> None:
    blocks[:, 48:176] = _pack_nibble_runs(quants & 15, 32)
    blocks[:, 16:48] = _pack_bit_planes(quants >> 4)


def _pack_pairs(quants: Bytes) -> Bytes:
    runs = quants.reshape(len(quants), 2, 4, 32)
    return np.asarray(
        np.bitwise_or.reduce([runs[:, :, k] << (2 * k) for k in range(4)], axis=0).reshape(len(quants), -1)
    )


def _pack_q2k(blocks: Bytes, quants: Bytes) -> None:
    blocks[:, 16:80] = _pack_pairs(quants)


def _pack_q3k(blocks: Bytes, quants: Bytes) -> None:
    blocks[:, 32:96] = _pack_pairs(quants & 3)
    blocks[:, :32] = _pack_bit_planes(quants >> 2)


def _pack_q6k(blocks: Bytes, quants: Bytes) -> None:
    low = (quants & 15).reshape(len(quants), 2, 2, 64)
    blocks[:, :128] = _nibbles(low[:, :, 0], low[:, :, 1]).reshape(len(quants), 128)
    blocks[:, 128:192] = _pack_pairs(quants >> 4)


_LAYOUTS: dict[GGMLType, _Layout] = {
    GGMLType.Q4_0: _Layout(32, -8, 7, _simple_scales(False), _pack_halves(2)),
    GGMLType.Q4_1: _Layout(32, 0, 15, _simple_scales(True), _pack_halves(4)),
    GGMLType.Q5_0: _Layout(32, -16, 15, _simple_scales(False), _pack_q5(2)),
    GGMLType.Q5_1: _Layout(32, 0, 31, _simple_scales(True), _pack_q5(4)),
    GGMLType.Q8_0: _Layout(32, -128, 127, _simple_scales(False), _pack_q8),
    GGMLType.Q2_K: _Layout(16, 0, 3, _q2_scales, _pack_q2k),
    GGMLType.Q3_K: _Layout(16, -4, 3, _q3_scales, _pack_q3k),
    GGMLType.Q4_K: _Layout(32, 0, 15, _k4_scales, _pack_q4k),
    GGMLType.Q5_K: _Layout(32, 0, 31, _k4_scales, _pack_q5k),
    GGMLType.Q6_K: _Layout(16, -32, 31, _q6_scales, _pack_q6k),
}
GRID_TYPES = frozenset(_LAYOUTS)
PACKERS = {kind: layout.pack for kind, layout in _LAYOUTS.items()}
"""type → what puts integers, from 0 up, uint8 [n, weights of a block], into blocks; it modifies the blocks."""


def read_grid(kind: GGMLType, rows: Bytes) -> Grid:
    """The grid of rows as `quantize_rows` gives them: uint8 [rows, bytes of a row].

    Raises:
        CodecError: the type's values are not scale · q + offset, or the rows are not whole blocks.
    """
    layout, blocks = _blocks(kind, rows)
    scale, offset = (array.reshape(len(rows), -1) for array in layout.scales(blocks))
    return Grid(scale, offset, layout.group, layout.lowest, layout.highest)


def write_quants(kind: GGMLType, rows: Bytes, quants: NDArray[np.int8]) -> Bytes:
    """`rows` with other integers [rows, columns] and the same scales; does not modify `rows`.

    Raises:
        CodecError: an integer that the type cannot hold; and as `read_grid`.
    """
    layout, blocks = _blocks(kind, np.array(rows))
    if quants.min(initial=0) < layout.lowest or quants.max(initial=0) > layout.highest:
        got = f"{quants.min()} to {quants.max()}"
        raise CodecError(f"type {kind.name}: expected integers from {layout.lowest} to {layout.highest}, got {got}")
    raised = (quants.astype(np.int16) - layout.lowest).astype(np.uint8).reshape(len(blocks), kind.block_size)
    layout.pack(blocks, raised)
    return blocks.reshape(rows.shape)


def _blocks(kind: GGMLType, rows: Bytes) -> tuple[_Layout, Bytes]:
    if kind not in _LAYOUTS:
        raise CodecError(f"type {kind.name}: its values do not lie on a grid of scale · q + offset")
    if rows.ndim != 2 or rows.shape[1] % kind.block_bytes:
        raise CodecError(
            f"type {kind.name}: expected rows of whole blocks of {kind.block_bytes} bytes, got {rows.shape}"
        )
    return _LAYOUTS[kind], rows.reshape(-1, kind.block_bytes)
