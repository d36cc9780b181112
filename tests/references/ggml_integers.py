"""The integers of quantised ggml blocks, unpacked in numpy as the structs of ggml-common.h lay them out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.gguf.types import GGMLType

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Bytes = NDArray[Any]


def _unpack_halves(start: int) -> Callable[[Bytes], Bytes]:
    """Blocks of 32: weight l in the low nibble of byte l, weight l + 16 in the high one."""
    return lambda blocks: np.concatenate(
        [blocks[:, start : start + 16] & 15, blocks[:, start : start + 16] >> 4], axis=1
    )


def _unpack_q5(start: int) -> Callable[[Bytes], Bytes]:
    """As the 4-bit blocks, with the fifth bits of all 32 weights in four bytes before."""

    def unpack(blocks: Bytes) -> Bytes:
        fifth = np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little")
        return np.asarray(_unpack_halves(start + 4)(blocks) | (fifth << 4))

    return unpack


def _unpack_q8(blocks: Bytes) -> Bytes:
    return np.asarray(blocks[:, 2:34] + np.uint8(128))  # two's complement + 128, modulo 256


def _unpack_nibble_runs(packed: Bytes, run: int) -> Bytes:
    """Runs of `run` bytes: low nibbles are one run of weights, high nibbles the next."""
    runs = packed.reshape(len(packed), -1, run)
    return np.stack([runs & 15, runs >> 4], axis=2).reshape(len(packed), -1)


def _unpack_q4k(blocks: Bytes) -> Bytes:
    return _unpack_nibble_runs(blocks[:, 16:144], 32)


def _unpack_bit_planes(packed: Bytes) -> Bytes:
    """32 bytes whose bit k belongs to weight 32 k + l: [n, 32] → [n, 256]."""
    return np.stack([(packed >> bit) & 1 for bit in range(8)], axis=1).reshape(len(packed), -1)


def _unpack_q5k(blocks: Bytes) -> Bytes:
    return np.asarray(_unpack_nibble_runs(blocks[:, 48:176], 32) | (_unpack_bit_planes(blocks[:, 16:48]) << 4))


def _unpack_pairs(packed: Bytes) -> Bytes:
    """Runs of 32 bytes with 2 bits each for four runs of 32 weights: [n, 64] → [n, 256]."""
    runs = packed.reshape(len(packed), 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 4, 1)
    return ((runs >> shifts) & 3).reshape(len(packed), -1)


def _unpack_q2k(blocks: Bytes) -> Bytes:
    return _unpack_pairs(blocks[:, 16:80])


def _unpack_q3k(blocks: Bytes) -> Bytes:
    return np.asarray(_unpack_pairs(blocks[:, 32:96]) | (_unpack_bit_planes(blocks[:, :32]) << 2))


def _unpack_q6k(blocks: Bytes) -> Bytes:
    runs = blocks[:, :128].reshape(len(blocks), 2, 1, 64)
    low = np.concatenate([runs & 15, runs >> 4], axis=2).reshape(len(blocks), 256)
    return np.asarray(low | (_unpack_pairs(blocks[:, 128:192]) << 4))


# The least integer of a type, and how q - lowest is unpacked: blocks [n, bytes] → [n, weights of a block].
_TYPES: dict[GGMLType, tuple[int, Callable[[Bytes], Bytes]]] = {
    GGMLType.Q4_0: (-8, _unpack_halves(2)),
    GGMLType.Q4_1: (0, _unpack_halves(4)),
    GGMLType.Q5_0: (-16, _unpack_q5(2)),
    GGMLType.Q5_1: (0, _unpack_q5(4)),
    GGMLType.Q8_0: (-128, _unpack_q8),
    GGMLType.Q2_K: (0, _unpack_q2k),
    GGMLType.Q3_K: (-4, _unpack_q3k),
    GGMLType.Q4_K: (0, _unpack_q4k),
    GGMLType.Q5_K: (0, _unpack_q5k),
    GGMLType.Q6_K: (-32, _unpack_q6k),
}


def read_quants(kind: GGMLType, rows: Bytes) -> NDArray[np.int8]:
    """The integers of rows uint8 [rows, bytes of a row]: int8 [rows, columns]."""
    lowest, unpack = _TYPES[kind]
    blocks = np.ascontiguousarray(rows).reshape(-1, kind.block_bytes)
    return (unpack(blocks).astype(np.int16) + lowest).astype(np.int8).reshape(len(rows), -1)
