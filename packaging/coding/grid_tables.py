"""Frequency tables of the coder of integers on grids: a family by scale class, shape and quantiser; none is stored.

Tables are made with IEEE additions, multiplications and exactly rounded sums only: the same bits on every machine.
Which class a symbol has is decided by `grid_coder`; tables learn in the kernel behind `rans`. numpy only.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOTAL = 1 << 16  # a table's frequencies add up to this
CLASSES = 48  # scales 2^((class - 12) / 4): 1/8 to 430
SHAPES = 8  # 0: Gaussian … 7: Laplace
OFFSET = 40  # class of a symbol = row class + column class - OFFSET, held to 0 … CLASSES - 1
_LADDER = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)
_KEPT = 128  # families in memory, at most 50 kB each: hostile streams name any of 1024


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


def _positions(reach: int, quantisers: int) -> NDArray[np.float64]:
    """Half the integers of indices -reach … reach by quantiser, [quantisers, 2 · reach + 1].

    On a plain grid (quantiser 0 alone) the integers are the indices.
    """
    return np.asarray(np.arange(-reach, reach + 1) + 0.5 * np.arange(quantisers)[:, None])


@lru_cache(_KEPT)
def first_tables(shape: int, reach: int, quantisers: int) -> NDArray[np.uint16]:
    """Frequencies of indices -reach … reach, each at least 1, together `TOTAL`: [quantisers, CLASSES, 2 · reach + 1].

    Of a trellis' integers the classes are those of their halves.

    Args:
        shape: 0 to `SHAPES` - 1.
        reach: at least 1.
        quantisers: 1, or 2 for those of a trellis.
    """
    scales = np.array([math.ldexp(_LADDER[number % 4], number // 4 - 3) for number in range(CLASSES)])
    x = np.abs(_positions(reach, quantisers))[:, None, :] / scales[:, None]
    weight = shape / (SHAPES - 1)
    density = _exp_of_minus((1.0 - weight) * (x * x) * 0.5 + weight * 1.4142135623730951 * x)
    sums = np.array([[math.fsum(row) for row in part] for part in density.tolist()])
    counts = (density / sums[..., None] * (TOTAL - (2 * reach + 1))).astype(np.uint32) + np.uint32(1)
    counts[..., reach] += np.uint32(TOTAL) - counts.sum(-1, dtype=np.uint32)
    tables: NDArray[np.uint16] = counts.astype(np.uint16)  # three symbols or more: none has them all
    tables.setflags(write=False)
    return tables


@lru_cache(_KEPT)
def mean_magnitudes(shape: int, reach: int, quantisers: int) -> NDArray[np.float64]:
    """Mean magnitude of every class, increasing; over quantiser 0 or over both."""
    magnitudes = np.abs(_positions(reach, quantisers))[:, None, :]
    means = (first_tables(shape, reach, quantisers).astype(np.float64) * magnitudes).sum(-1) / TOTAL
    return np.asarray(means.mean(0))


def classes_of(rows: NDArray[np.int64], columns: NDArray[Any]) -> NDArray[np.int64]:
    """The class of every symbol [rows, columns]."""
    return np.asarray((rows[:, None] + columns - OFFSET).clip(0, CLASSES - 1))
