"""Packs small unsigned numbers into bytes, least significant bit first, and reads any range of them back.

What the numbers mean is left to the codecs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BITS = 16
# Eight numbers of any width end on a byte, so packing and reading work in groups of eight.
_GROUP = 8


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that hold `count` numbers of `bits` bits each."""
    return -(-count * bits // 8)


def pack(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Numbers below 2^bits as a bit stream: number i occupies bits i·bits and up, least significant first.

    Args:
        values: whole numbers, one-dimensional, each in [0, 2^bits).
        bits: 1 to `MAX_BITS`.

    Returns:
        uint8 [packed_bytes(len(values), bits)]; the unused high bits of the last byte are zero.
    """
    flat = np.asarray(values, dtype=np.uint16)
    if bits == MAX_BITS:
        return flat.astype("<u2").view(np.uint8)
    if bits == _GROUP:
        return flat.astype(np.uint8)
    groups = np.zeros((-(-flat.size // _GROUP), _GROUP), dtype=np.uint16)
    groups.reshape(-1)[: flat.size] = flat
    lanes = groups.astype(np.uint64)
    packed = np.zeros((groups.shape[0], bits), dtype=np.uint8)
    for byte in range(bits):
        packed[:, byte] = _byte_of_group(lanes, bits, byte)
    return packed.reshape(-1)[: packed_bytes(flat.size, bits)]


def _byte_of_group(lanes: NDArray[np.uint64], bits: int, byte: int) -> NDArray[np.uint8]:
    """Byte number `byte` of each group of eight numbers."""
    total = np.zeros(lanes.shape[0], dtype=np.uint64)
    for lane in range(_GROUP):
        shift = lane * bits - byte * 8
        if -bits < shift < 8:
            column = lanes[:, lane]
            total |= column << np.uint64(shift) if shift >= 0 else column >> np.uint64(-shift)
    low: NDArray[np.uint8] = (total & np.uint64(0xFF)).astype(np.uint8)
    return low


def unpack(stream: NDArray[np.uint8], bits: int, start: int, stop: int) -> NDArray[np.uint16]:
    """Numbers `start` (included) to `stop` (not included) of a stream made by `pack`.

    Args:
        stream: uint8, at least packed_bytes(stop, bits) long.
        bits: 1 to `MAX_BITS`.
        start: first number, included.
        stop: last number, not included.
    """
    if bits == MAX_BITS:
        return np.ascontiguousarray(stream[2 * start : 2 * stop]).view("<u2")
    if bits == _GROUP:
        return stream[start:stop].astype(np.uint16)
    first = start // _GROUP
    groups = -(-stop // _GROUP) - first
    raw = np.zeros(groups * bits + 4, dtype=np.uint8)
    piece = stream[first * bits : first * bits + groups * bits]
    raw[: piece.size] = piece
    numbers = np.empty((groups, _GROUP), dtype=np.uint16)
    for lane in range(_GROUP):
        _read_lane(raw, bits, lane, numbers)
    return numbers.reshape(-1)[start - first * _GROUP : stop - first * _GROUP]


def _read_lane(raw: NDArray[np.uint8], bits: int, lane: int, numbers: NDArray[np.uint16]) -> None:
    """Number `lane` of every group, from the two or three bytes that it touches."""
    groups = numbers.shape[0]
    byte, shift = divmod(lane * bits, 8)
    total = raw[byte : byte + groups * bits : bits].astype(np.uint32)
    for extra in range(1, (shift + bits + 7) // 8):
        total |= raw[byte + extra : byte + extra + groups * bits : bits].astype(np.uint32) << np.uint32(8 * extra)
    numbers[:, lane] = (total >> np.uint32(shift)) & np.uint32((1 << bits) - 1)
