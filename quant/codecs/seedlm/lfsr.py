"""Linear-feedback shift registers: the pseudo-random numbers that SeedLM builds its matrices from.

Fibonacci form, shifting right: the new top bit is the exclusive or of the tapped bits. Every register here
has full period 2^K - 1, so its states lie on one cycle, and decoding is a gather along that cycle.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Tapped bits for each register length: the exponents below K of a primitive polynomial x^K + … + 1.
# K = 16 is SeedLM's own (taps 16, 15, 13, 4 counted from the other end); tests hold every period.
TAPS: dict[int, tuple[int, ...]] = {
    2: (0, 1), 3: (0, 1), 4: (0, 1), 5: (0, 2), 6: (0, 1), 7: (0, 1), 8: (0, 2, 3, 4), 9: (0, 4),
    10: (0, 3), 11: (0, 2), 12: (0, 1, 4, 6), 13: (0, 1, 3, 4), 14: (0, 1, 6, 10), 15: (0, 1), 16: (0, 1, 3, 12),
}  # fmt: skip


def step(state: int, bits: int) -> int:
    """The state after `state` of a register of `bits` bits."""
    feedback = 0
    for tap in TAPS[bits]:
        feedback ^= state >> tap
    return (state >> 1) | ((feedback & 1) << (bits - 1))


@lru_cache(maxsize=len(TAPS))
def cycle(bits: int) -> NDArray[np.uint16]:
    """All 2^bits - 1 states in order, from the one after state 1 to state 1 itself."""
    states = np.empty((1 << bits) - 1, dtype=np.uint16)
    state = 1
    for index in range(states.size):
        state = step(state, bits)
        states[index] = state
    states.setflags(write=False)
    return states


@lru_cache(maxsize=len(TAPS))
def positions(bits: int) -> NDArray[np.intp]:
    """For each state, the index in `cycle` of the state after it; [2^bits], entry 0 is unused."""
    where = np.zeros(1 << bits, dtype=np.intp)
    states = cycle(bits)
    where[states] = (np.arange(states.size) + 1) % states.size
    where.setflags(write=False)
    return where


def normalised_cycle(bits: int, extra: int) -> NDArray[np.float32]:
    """(state - 2^(K-1)) / (2^(K-1) - 1) along the cycle, its first `extra` entries repeated at the end.

    Returns:
        float32 [2^bits - 1 + extra]; entries from positions(bits)[s] on are U(s), row by row.
    """
    half = 1 << (bits - 1)
    # A register of two bits has 2^(K-1) - 1 = 1, so the divisor is never zero.
    values = (cycle(bits).astype(np.float64) - half) / (half - 1)
    return np.resize(values, values.size + extra).astype(np.float32)


def matrices(bits: int, rows: int, columns: int) -> NDArray[np.float32]:
    """U(s) for every seed s = 1 … 2^bits - 1, float32 [2^bits - 1, rows, columns]; seed s is entry s - 1."""
    size = rows * columns
    windows = np.lib.stride_tricks.sliding_window_view(normalised_cycle(bits, size), size)
    gathered: NDArray[np.float32] = windows[positions(bits)[1:]]
    return gathered.reshape(-1, rows, columns)
