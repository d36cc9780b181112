"""Integers that follow a trellis code as indices and quantisers: what the state says is not coded twice.

A state has one of two quantisers; of the integers that it allows the index alone goes to the coder, in a table for
the quantiser. Which path is best was decided when the weights were rounded; probabilities and bytes are left to
`grid_coder`. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.trellis import TrellisCode


def transitions(code: TrellisCode) -> NDArray[np.uint8]:
    """The state that follows, uint8 [2, states], after an index with lowest bit 0 or 1."""
    states, taps = np.arange(code.states), np.array(code.taps)
    return np.stack([(2 * states + (bit ^ taps)) % code.states for bit in (0, 1)]).astype(np.uint8)


def quantisers(code: TrellisCode) -> NDArray[np.uint8]:
    """The quantiser of each state, uint8 [states]."""
    return np.array(code.quantisers, np.uint8)


def indices_of(integers: NDArray[np.int64], chosen: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The index k of integers n = 2k + q, for quantisers q."""
    return (integers - chosen) >> 1


def integers_of(indices: NDArray[np.int64], chosen: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The inverse of `indices_of`."""
    return 2 * indices + chosen


def starts(code: TrellisCode, columns: int) -> NDArray[np.uint8]:
    """The state in which a path begins, for each column."""
    return (np.arange(columns) % code.states).astype(np.uint8)


def follow(
    integers: NDArray[np.int64], aside: NDArray[np.bool_], starts: NDArray[np.uint8], code: TrellisCode
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Quantisers along the columns of [rows, columns], and whether each column [columns] keeps to the code.

    Args:
        integers: without multiples.
        aside: bool [rows], rows that stand aside.
        starts: uint8 [columns], where their paths begin.
        code: the code.
    """
    after, of_state = transitions(code), quantisers(code)
    found = np.zeros(integers.shape, np.uint8)
    keeps = np.ones(integers.shape[1], bool)
    state = starts
    for row, values in enumerate(integers):
        if row % code.rows == 0:
            state = starts
        if not aside[row]:
            found[row] = of_state[state]
            state = after[(values >> 1) & 1, state]
        keeps &= (values & 1) == found[row]
    return found, keeps


@dataclass(frozen=True)
class TrellisSymbols:
    """A matrix [rows, columns] of integers that follow a code.

    Attributes:
        indices: int64 [rows, columns].
        quantisers: uint8 [rows, columns].
        multiples: int64 [columns].
        aside: bool [rows], rows that stand aside.
    """

    indices: NDArray[np.int64]
    quantisers: NDArray[np.uint8]
    multiples: NDArray[np.int64]
    aside: NDArray[np.bool_]


def as_indices(integers: NDArray[np.int64], multiples: NDArray[np.int64], code: TrellisCode) -> TrellisSymbols | None:
    """Recognise integers that follow the code.

    Args:
        integers: [rows, columns], multiples included.
        multiples: the greatest common divisor of each column; a divisor of it may be what the code wants.
        code: the code.

    Returns:
        None where a column follows the code with no divisor.
    """
    chosen, open_columns = multiples.copy(), np.arange(len(multiples))
    found, first = np.empty(integers.shape, np.uint8), starts(code, len(multiples))
    aside = _stand_aside(integers, multiples)
    while len(open_columns):
        tried = integers[:, open_columns] // chosen[open_columns]
        expected, keeps = follow(tried, aside, first[open_columns], code)
        found[:, open_columns[keeps]] = expected[:, keeps]
        open_columns = open_columns[~keeps]
        if (chosen[open_columns] == 1).any():
            return None
        pairs = zip(multiples[open_columns], chosen[open_columns], strict=True)
        chosen[open_columns] = [_next_divisor(int(all_), int(now)) for all_, now in pairs]
    return TrellisSymbols(indices_of(integers // chosen, found), found, chosen, aside)


def _stand_aside(integers: NDArray[np.int64], multiples: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Rows without an odd integer, bool [rows]: a row of paths is odd in every other column.

    A column whose divisor is even by chance would call a row odd that is not, so it is asked only if all are even.
    """
    odd = multiples % 2 == 1
    telling = integers[:, odd] if odd.any() else integers // multiples
    return np.asarray(~(telling & 1).any(axis=1))


def _next_divisor(number: int, below: int) -> int:
    """The greatest divisor of `number` that is less than `below`, which is above 1."""
    return next(divisor for divisor in range(below - 1, 0, -1) if number % divisor == 0)


class StateTracker:
    """Follows the states of all columns while a decoder takes symbols row by row.

    Args:
        code: the code.
        aside: bool [rows], rows that stand aside.
        columns: of the matrix; at most so many symbols may be taken at once.
        reach: a symbol is index + reach.
    """

    def __init__(self, code: TrellisCode, aside: NDArray[np.bool_], columns: int, reach: int) -> None:
        self._quantisers = quantisers(code)
        self._after = transitions(code) if reach % 2 == 0 else transitions(code)[::-1]
        self._starts = starts(code, columns)
        self._states = self._starts.copy()
        self._column = np.tile(np.arange(columns), len(aside))
        self._on_path = np.repeat(~aside, columns)
        self._ends = np.repeat(np.arange(1, len(aside) + 1) % code.rows == 0, columns)

    def quantisers(self, first: int, stop: int) -> NDArray[np.uint8]:
        """Of symbols `first` (included) to `stop` (not included), all of whose predecessors have been taken."""
        return np.asarray(self._quantisers[self._states[self._column[first:stop]]] * self._on_path[first:stop])

    def take(self, first: int, symbols: NDArray[Any]) -> None:
        """Move on by the symbols from `first`."""
        taken = slice(first, first + len(symbols))
        columns, before = self._column[taken], self._states[self._column[taken]]
        after = np.where(self._on_path[taken], self._after[symbols & 1, before], before)
        self._states[columns] = np.where(self._ends[taken], self._starts[columns], after)
