"""Rows whose values a function changes, whose columns stand in another order, or that end before they should.

As in `export.arranged_rows` each expression is lazy; which tensor needs which is data in `export.architectures`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from edgepack.export.formats.packed import KeptArrays
from edgepack.export.row_origin import RowOrigin, joined
from edgepack.export.rows import row_count

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Matrix, Rows


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
    def origin(self) -> RowOrigin:
        """As `Rows.origin`: computed."""
        return RowOrigin.computed(row_count(self.shape), self.base.origin.names)

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
    def origin(self) -> RowOrigin:
        """As `Rows.origin`."""
        return self.base.origin.with_columns(self.order)

    @property
    def dtype(self) -> str:
        """The base's type."""
        return self.base.dtype

    def read(self, start: int, stop: int) -> Matrix:
        """As `Rows.read`."""
        return self.base.read(start, stop)[:, self.order]


@dataclass(frozen=True)
class PickedColumns(PermutedColumns):
    """As `PermutedColumns`, of an order that does not take all columns of the base."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As many columns as the order has."""
        return (*self.base.shape[:-1], len(self.order))


@dataclass(frozen=True)
class TransposedExperts:
    """The transpose of every matrix of a stack: base shape [experts, columns, rows].

    A matrix is read whole; the few read last are kept, so that successive rows of it share one read.
    """

    base: Rows
    _kept: KeptArrays = field(default_factory=KeptArrays, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """[experts, rows, columns]; the base's where it is no stack."""
        if len(self.base.shape) != 3:
            return self.base.shape
        experts, columns, rows = self.base.shape
        return (experts, rows, columns)

    @property
    def origin(self) -> RowOrigin:
        """As `Rows.origin`: computed."""
        return RowOrigin.computed(row_count(self.shape), self.base.origin.names)

    @property
    def dtype(self) -> str:
        """The base's type."""
        return self.base.dtype

    def read(self, start: int, stop: int) -> Matrix:
        """As `Rows.read`."""
        per, pieces = self.shape[1], []
        while start < stop:
            expert, row = divmod(start, per)
            end = min(stop, (expert + 1) * per)
            pieces.append(self._expert(expert)[row : row + end - start])
            start = end
        return np.concatenate(pieces)

    def _expert(self, expert: int) -> Matrix:
        width = self.base.shape[1]

        def load() -> Matrix:
            return np.ascontiguousarray(self.base.read(expert * width, (expert + 1) * width).T)

        matrix: Matrix = self._kept.get(str(expert), load)
        return matrix


@dataclass(frozen=True)
class RefoldedRows:
    """A small tensor under another shape of as many weights; every read reads the base whole."""

    base: Rows
    new_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The new shape, or the base's where it has not as many weights."""
        return self.new_shape if prod(self.new_shape) == prod(self.base.shape) else self.base.shape

    @property
    def origin(self) -> RowOrigin:
        """As `Rows.origin`: computed."""
        return RowOrigin.computed(row_count(self.shape), self.base.origin.names)

    @property
    def dtype(self) -> str:
        """The base's type."""
        return self.base.dtype

    def read(self, start: int, stop: int) -> Matrix:
        """As `Rows.read`."""
        return self.base.read(0, prod(self.base.shape[:-1])).reshape(-1, self.new_shape[-1])[start:stop]


@dataclass(frozen=True)
class RowScaledRows:
    """Row i of a matrix times `factors[i]`; the base's own shape must have as many rows."""

    base: Rows
    factors: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, ...]:
        """The base's shape."""
        return self.base.shape

    @property
    def origin(self) -> RowOrigin:
        """As `Rows.origin`."""
        return self.base.origin.scaled_each(self.factors)

    @property
    def dtype(self) -> str:
        """float32: the values are computed."""
        return "f32"

    def read(self, start: int, stop: int) -> Matrix:
        """As `Rows.read`."""
        return self.base.read(start, stop) * self.factors[start:stop, None]


@dataclass(frozen=True)
class PaddedRows:
    """The rows of a matrix, and its first one again below them up to `count` rows."""

    base: Rows
    count: int

    @property
    def shape(self) -> tuple[int, ...]:
        """As many rows as asked for, or the base's where it has more."""
        return (max(self.count, self.base.shape[0]), *self.base.shape[1:])

    @property
    def origin(self) -> RowOrigin:
        """As `Rows.origin`."""
        origin, more = self.base.origin, row_count(self.shape) - row_count(self.base.shape)
        return joined([origin, RowOrigin.computed(more, origin.names)])

    @property
    def dtype(self) -> str:
        """The base's type."""
        return self.base.dtype

    def read(self, start: int, stop: int) -> Matrix:
        """As `Rows.read`."""
        held = max(start, min(stop, self.base.shape[0]))
        parts = [self.base.read(start, held)] if held > start else []
        if stop > held:
            parts.append(np.repeat(self.base.read(0, 1), stop - held, axis=0))
        return np.concatenate(parts)


def _decay(logarithm: Matrix) -> Matrix:
    decayed: Matrix = -np.exp(logarithm)
    return decayed


def _logarithm(decay: Matrix) -> Matrix:
    found: Matrix = np.log(-decay)
    return found


INVERSES: Mapping[Callable[[Matrix], Matrix], Callable[[Matrix], Matrix]] = {_decay: _logarithm}
"""Functions of `MappedRows` and what undoes them, for a GGUF that is read backwards."""


def decay_rates(rows: Rows, _config: ModelConfig) -> Rows:
    """Decay rates of a recurrent state: checkpoints hold log(-a), ggml takes a."""
    return MappedRows(rows, _decay)


def as_column(rows: Rows, _config: ModelConfig) -> Rows:
    """HF: [n] → ggml: {1, n}."""
    return RefoldedRows(rows, (*rows.shape, 1))


def decay_column(rows: Rows, config: ModelConfig) -> Rows:
    """`decay_rates`, HF: [n] → ggml: {1, n}."""
    return as_column(decay_rates(rows, config), config)
