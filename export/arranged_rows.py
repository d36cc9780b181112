"""Rows of a GGUF tensor made from rows of a checkpoint's: permuted, sliced, joined, transposed, shifted.

Each expression is lazy and reads only the rows that are asked for. Which tensor needs which expression is
data in `export.architectures`.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from edgepack.export.row_origin import RowOrigin, joined
from edgepack.export.rows import SourceRows, row_count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgepack.export.rows import Matrix, Rows


@dataclass(frozen=True)
class WrappedRows:
    """Rows made of others, whose shape, type and origin they have unless they say otherwise."""

    base: Rows

    @property
    def shape(self) -> tuple[int, ...]:
        """The base's shape."""
        return self.base.shape

    @property
    def dtype(self) -> str:
        """The base's type."""
        return self.base.dtype

    @property
    def origin(self) -> RowOrigin:
        """As `Rows.origin`: the base's."""
        return self.base.origin


@dataclass(frozen=True)
class PermutedRows(WrappedRows):
    """Row i is row `order[i]` of the base; for a vector, element i is element `order[i]`."""

    order: NDArray[np.intp]

    @property
    def origin(self) -> RowOrigin:
        """As `Rows.origin`."""
        return self.base.origin.take(self.order)

    def read(self, start: int, stop: int) -> Matrix:
        """As `Rows.read`; reads the smallest range of the base that holds the rows asked for."""
        if len(self.shape) == 1:
            return self.base.read(start, stop)[:, self.order]
        wanted = self.order[start:stop]
        low = int(wanted.min())
        return self.base.read(low, int(wanted.max()) + 1)[wanted - low]


@dataclass(frozen=True)
class PickedRows(PermutedRows):
    """As `PermutedRows`, of an order that does not take all rows of the base."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As many rows as the order has."""
        return (len(self.order), *self.base.shape[1:])


@dataclass(frozen=True)
class SlicedRows(WrappedRows):
    """Rows `start` to `stop` (not included) of a matrix, or elements of a vector."""

    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The first dimension becomes stop - start."""
        return (self.stop - self.start, *self.base.shape[1:])

    @property
    def origin(self) -> RowOrigin:
        """As `Rows.origin`."""
        per = prod(self.base.shape[1:-1])
        return self.base.origin.take(slice(self.start * per, self.stop * per))

    def read(self, start: int, stop: int) -> Matrix:
        """As `Rows.read`."""
        if len(self.base.shape) == 1:
            return self.base.read(start, stop)[:, self.start : self.stop]
        per = prod(self.base.shape[1:-1])
        return self.base.read(self.start * per + start, self.start * per + stop)


@dataclass(frozen=True)
class SlicedExperts(WrappedRows):
    """Rows `start` to `stop` (not included) of every expert of a stack: base shape [experts, rows, columns]."""

    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        """[experts, stop - start, columns]."""
        return (self.base.shape[0], self.stop - self.start, self.base.shape[2])

    @property
    def origin(self) -> RowOrigin:
        """As `Rows.origin`."""
        experts, per, _columns = self.base.shape
        kept = np.arange(experts)[:, None] * per + np.arange(self.start, self.stop)
        return self.base.origin.take(kept.reshape(-1))

    def read(self, start: int, stop: int) -> Matrix:
        """As `Rows.read`; one read of the base for each expert that is touched."""
        pieces, kept, per = [], self.stop - self.start, self.base.shape[1]
        while start < stop:
            expert, row = divmod(start, kept)
            end = min(stop, (expert + 1) * kept)
            begin = expert * per + self.start + row
            pieces.append(self.base.read(begin, begin + end - start))
            start = end
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


@dataclass(frozen=True)
class ReshapedRows(WrappedRows):
    """The same rows under another shape with the same last dimension."""

    new_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The new shape."""
        return self.new_shape

    @property
    def origin(self) -> RowOrigin:
        """As `Rows.origin`; a row that becomes a vector has no rows any more."""
        origin, count = self.base.origin, row_count(self.shape)
        return origin if len(origin) == count else RowOrigin.computed(count, origin.names)

    def read(self, start: int, stop: int) -> Matrix:
        """As `Rows.read`."""
        return self.base.read(start, stop)


@dataclass(frozen=True)
class ShiftedRows(WrappedRows):
    """Every weight plus `shift`: norms that checkpoints store as w where the graph uses 1 + w."""

    shift: float

    def read(self, start: int, stop: int) -> Matrix:
        """As `Rows.read`."""
        rows = self.base.read(start, stop)
        rows += np.float32(self.shift)
        return rows


@dataclass(frozen=True)
class ScaledRows(WrappedRows):
    """Every weight times `factor`."""

    factor: float

    @property
    def origin(self) -> RowOrigin:
        """As `Rows.origin`."""
        return self.base.origin.scaled(self.factor)

    def read(self, start: int, stop: int) -> Matrix:
        """As `Rows.read`."""
        rows = self.base.read(start, stop)
        rows *= np.float32(self.factor)
        return rows


@dataclass(frozen=True)
class TransposedRows(WrappedRows):
    """The transpose of a matrix (GPT-2's Conv1D).

    The base is read whole at the first call and let go after its last row, so memory is one tensor.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The base's shape, reversed."""
        return self.base.shape[::-1]

    @property
    def origin(self) -> RowOrigin:
        """As `Rows.origin`: columns of a whole tensor; of anything else, computed."""
        count, names = self.shape[0], self.base.origin.names
        if not isinstance(self.base, SourceRows):
            return RowOrigin.computed(count, names)
        return replace(RowOrigin.of_tensor(self.base.name, count), transposed=frozenset(names))

    def read(self, start: int, stop: int) -> Matrix:
        """As `Rows.read`."""
        rows = np.ascontiguousarray(self._whole[:, start:stop].T)
        if stop == self.shape[0]:
            self.__dict__.pop("_whole", None)
        return rows

    @cached_property
    def _whole(self) -> Matrix:
        return self.base.read(0, self.base.shape[0])


@dataclass(frozen=True)
class JoinedRows:
    """Parts one below the other: split matrices fused, or experts stacked under `shape`."""

    parts: Sequence[Rows]
    shape: tuple[int, ...]

    @property
    def dtype(self) -> str:
        """The first part's type."""
        return self.parts[0].dtype

    @property
    def origin(self) -> RowOrigin:
        """As `Rows.origin`."""
        return joined([part.origin for part in self.parts])

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(prod(part.shape[:-1]) for part in self.parts))

    def read(self, start: int, stop: int) -> Matrix:
        """As `Rows.read`."""
        if len(self.shape) == 1:
            return np.concatenate([part.read(0, 1) for part in self.parts], axis=1)
        pieces, at = [], start
        while at < stop:
            number = bisect_right(self._ends, at)
            begin = self._ends[number - 1] if number else 0
            end = min(stop, self._ends[number])
            pieces.append(self.parts[number].read(at - begin, end - begin))
            at = end
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
