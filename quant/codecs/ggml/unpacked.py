"""Integers of ggml's blocks as one array: the inverse of what `grid` packs, from 0 up.

Functions take blocks uint8 [n, bytes of a block] and give uint8 [n, weights of a block]. Layouts are those of the
structs in ggml-common.h. numpy only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Bytes = NDArray[Any]  # uint8; numpy's stubs lose the type at every shift


def halves(start: int) -> Callable[[Bytes], Bytes]:
    """16 bytes at `start`: their low nibbles, then their high ones."""

    def unpack(blocks: Bytes) -> Bytes:
        packed = blocks[:, start : start + 16]
        return np.concatenate([packed & 15, packed >> 4], axis=1)

    return unpack


def q5(start: int) -> Callable[[Bytes], Bytes]:
    """32 bits at `start`, the fifth of each weight, and nibbles behind them."""
    nibbles = halves(start + 4)

    def unpack(blocks: Bytes) -> Bytes:
        fifth = np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little")
        return np.asarray(nibbles(blocks) | fifth << 4)

    return unpack


def q8(blocks: Bytes) -> Bytes:
    """Signed bytes behind the step."""
    return np.asarray(blocks[:, 2:34] + np.uint8(128))


def _nibble_runs(packed: Bytes, run: int) -> Bytes:
    runs = packed.reshape(len(packed), -1, run)
    return np.stack([runs & 15, runs >> 4], axis=2).reshape(len(packed), -1)


def _pairs(packed: Bytes) -> Bytes:
    runs = packed.reshape(len(packed), 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    return np.asarray(runs >> shifts & 3).reshape(len(packed), -1)


def _bit_planes(packed: Bytes) -> Bytes:
    return (packed[:, None, :] >> np.arange(8, dtype=np.uint8)[None, :, None] & 1).reshape(len(packed), -1)


def q4_k(blocks: Bytes) -> Bytes:
    """Runs of 32 low nibbles and 32 high ones."""
    return _nibble_runs(blocks[:, 16:144], 32)


def q5_k(blocks: Bytes) -> Bytes:
    """As `q4_k`, with a plane of fifth bits a run."""
    return np.asarray(_nibble_runs(blocks[:, 48:176], 32) | _bit_planes(blocks[:, 16:48]) << 4)


def q2_k(blocks: Bytes) -> Bytes:
    """Pairs of bits, four runs of 32 in each half."""
    return _pairs(blocks[:, 16:80])


def q3_k(blocks: Bytes) -> Bytes:
    """As `q2_k`, with a plane of third bits a run."""
    return np.asarray(_pairs(blocks[:, 32:96]) | _bit_planes(blocks[:, :32]) << 2)


def q6_k(blocks: Bytes) -> Bytes:
    """Nibbles, 64 low and 64 high in each half, and pairs of bits above them."""
    return np.asarray(_nibble_runs(blocks[:, :128], 64) | _pairs(blocks[:, 128:192]) << 4)


def iq4_xs(blocks: Bytes) -> Bytes:
    """Runs of 16 low nibbles and 16 high ones."""
    return _nibble_runs(blocks[:, 8:136], 16)


def pack_iq4_xs(blocks: Bytes, quants: NDArray[np.uint8]) -> None:
    """The inverse of `iq4_xs`; modifies the blocks."""
    runs = quants.reshape(len(quants), -1, 2, 16)
    blocks[:, 8:136] = (runs[:, :, 0] | runs[:, :, 1] << 4).reshape(len(quants), -1)
