"""Rows whose values a function changes, and rows whose columns stand in another order.

As in `export.rows` each expression is lazy; which tensor needs which is data in `export.architectures`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Matrix, Rows
    from numpy.typing import NDArray


@dataclass(frozen=True)
class MappedRows:
    """Every weight through `function`, which takes and gives float32 [rows, columns]."""

    base: Rows
    function: Callable[[Matrix], Matrix]

    @property
    def shape(self) -> tuple[int, ...]:
        """The base's shape."""
        return self.base.shape

    @property
    def dtype(self) -> str:
        """float32: the values are computed."""
        return "f32"

    def read(self, start: int, stop: int) -> Matrix:
        """As `Rows.read`."""
        return self.function(self.base.read(start, stop))


@dataclass(frozen=True)
class PermutedColumns:
    """Column i is column `order[i]` of the base."""

    base: Rows
    order: NDArray[np.intp]

    @property
    def shape(self) -> tuple[int, ...]:
        """The base's shape."""
        return self.base.shape

    @property
    def dtype(self) -> str:
        """The base's type."""
        return self.base.dtype

    def read(self, start: int, stop: int) -> Matrix:
        """As `Rows.read`."""
        return self.base.read(start, stop)[:, self.order]


def _decay(logarithm: Matrix) -> Matrix:
    decayed: Matrix = -np.exp(logarithm)
    return decayed


def decay_rates(rows: Rows, _config: ModelConfig) -> Rows:
    """Decay rates of a recurrent state: checkpoints hold log(-a), ggml takes a."""
    return MappedRows(rows, _decay)
