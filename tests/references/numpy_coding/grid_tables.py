"""Frequency tables of the coder of integers on grids: a family by scale class, shape and quantiser; none is stored.

Tables are made with IEEE additions, multiplications and exactly rounded sums only: the same bits on every machine.
Which class a symbol has is decided by `grid_coder`, coding by `rans`. numpy only.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOTAL = 1 << 16  # a table's frequencies add up to this
_PRIOR = 1024  # symbols that a table's first frequencies count for when it learns
CLASSES = 48  # scales 2^((class - 12) / 4): 1/8 to 430
SHAPES = 8  # 0: Gaussian … 7: Laplace
OFFSET = 40  # class of a symbol = row class + column class - OFFSET, held to 0 … CLASSES - 1


def _exp_of_minus(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(-x) for x ≥ 0 by halving and Taylor's series: only IEEE additions, products and powers of two."""
    halvings = 10
    x = np.minimum(values, 600.0) / -(2.0**halvings)
    total, term = np.ones_like(x), np.ones_like(x)
    for n in range(1, 14):
        term = term * x / n
        total = total + term
    for _ in range(halvings):
        total = total * total
    return total


def _positions(reach: int, quantiser: int) -> NDArray[np.float64]:
    """Half the integers of indices -reach … reach; on a plain grid (quantiser 0) the integers are the indices."""
    return np.asarray(np.arange(-reach, reach + 1) + 0.5 * quantiser)


@cache
def frequencies(scale_class: int, shape: int, reach: int, quantiser: int = 0) -> NDArray[np.uint32]:
    """Frequencies of indices -reach … reach for a class and shape; each at least 1, together `TOTAL`.

    Of a trellis' integers the classes are those of their halves.
    """
    ladder = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)[scale_class % 4]
    scale = math.ldexp(ladder, scale_class // 4 - 3)
    x = np.abs(_positions(reach, quantiser)) / scale
    weight = shape / (SHAPES - 1)
    density = _exp_of_minus((1.0 - weight) * (x * x) * 0.5 + weight * 1.4142135623730951 * x)
    free = TOTAL - (2 * reach + 1)
    counts = (density / math.fsum(density.tolist()) * free).astype(np.uint32) + np.uint32(1)
    counts[reach] += np.uint32(TOTAL - int(counts.sum()))
    counts.setflags(write=False)
    return np.asarray(counts)


@cache
def mean_magnitudes(shape: int, reach: int, quantisers: int) -> NDArray[np.float64]:
    """Mean magnitude of every class, increasing; over quantiser 0 or over both."""
    found = []
    for quantiser in range(quantisers):
        magnitudes = np.abs(_positions(reach, quantiser))
        found.append([(frequencies(c, shape, reach, quantiser) * magnitudes).sum() / TOTAL for c in range(CLASSES)])
    return np.asarray(np.array(found).mean(0))


def classes_of(rows: NDArray[np.int64], columns: NDArray[Any]) -> NDArray[np.int64]:
    """The class of every symbol [rows, columns]."""
    return np.asarray((rows[:, None] + columns - OFFSET).clip(0, CLASSES - 1))


def table(pick: int, shape: int, reach: int) -> NDArray[np.uint32]:
    """Frequencies of a table by its number."""
    return frequencies(pick % CLASSES, shape, reach, pick // CLASSES)


class LearningTables:
    """Frequencies of some tables, which come closer to what has been coded; integers only, so the same everywhere.

    A table begins as its class and shape have it and counts as `_PRIOR` symbols seen before.

    Args:
        picks: numbers of the tables that may be used.
        shape: of all tables.
        reach: of all tables.
        learns: whether they change at all.

    Attributes:
        places: int64, number of a table → its row in `counts` and `starts`.
        counts: uint64 [tables, 2 · reach + 1], each at least 1, together `TOTAL` a row.
        starts: uint64, what stands before each.
    """

    def __init__(self, picks: NDArray[np.int64], shape: int, reach: int, *, learns: bool) -> None:
        used = np.flatnonzero(np.bincount(picks))
        self.learns = learns
        self.places = np.zeros(3 * CLASSES, np.int64)
        self.places[used] = np.arange(len(used))
        first = np.stack([table(int(pick), shape, reach) for pick in used]).astype(np.int64)
        self._seen, self._centre = first.copy(), reach
        self._set(first)

    def _set(self, counts: NDArray[np.int64]) -> None:
        self.counts = counts.astype(np.uint64)
        self.starts = np.cumsum(self.counts, axis=1) - self.counts

    def learn(self, places: NDArray[np.int64], symbols: NDArray[Any], *, last: bool) -> None:
        """Take note of symbols and the tables that they had; nothing is done for the last ones."""
        if not self.learns or last:
            return
        tables, length = self._seen.shape
        found = np.bincount(places * length + symbols, minlength=tables * length).reshape(tables, length)
        self._seen += found * (TOTAL // _PRIOR)
        free = TOTAL - length
        counts = self._seen * free // self._seen.sum(1, keepdims=True) + 1
        counts[:, self._centre] += TOTAL - counts.sum(1)
        self._set(counts)

    def of_slot(self) -> NDArray[np.uint8]:
        """The symbol of each of a table's `TOTAL` slots, uint8 [tables, TOTAL]."""
        tables, length = self.counts.shape
        symbols = np.tile(np.arange(length, dtype=np.uint8), tables)
        return np.repeat(symbols, self.counts.reshape(-1).astype(np.int64)).reshape(tables, TOTAL)
