"""A tensor put together of pieces: rows, or columns, that stand in several others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from edgepack.export.row_origin import RowOrigin

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.export.rows import Matrix, Rows

_NOWHERE = -1


@dataclass(frozen=True)
class Piece:
    """Some rows of a tensor; dimensions before the last count as one, and of a vector elements are meant.

    Attributes:
        rows: int [n], which ones.
        value: what they hold, as many rows.
        columns: int [m], those of their columns that `value` has; all where None.
    """

    rows: NDArray[np.intp]
    value: Rows
    columns: NDArray[np.intp] | None = None


@dataclass(frozen=True)
class AssembledRows:
    """Rows of several others in the order that their pieces say; what no piece holds is zero.

    Attributes:
        shape: of the whole.
        dtype: of the whole.
        pieces: at least one; where several hold a weight, the last one's is taken.
    """

    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[Piece, ...]

    @cached_property
    def is_complete(self) -> bool:
        """Whether every weight is in a piece."""
        if any(piece.columns is not None for piece in self.pieces):
            held = {int(each) for piece in self.pieces for each in (piece.columns if piece.columns is not None else ())}
            return len(held) == self.shape[-1]
        return bool((self._owners != _NOWHERE).all())

    @property
    def origin(self) -> RowOrigin:
        """As `Rows.origin`: computed."""
        return RowOrigin.computed(self._count, [name for piece in self.pieces for name in piece.value.origin.names])

    def read(self, start: int, stop: int) -> Matrix:
        """As `Rows.read`; of each piece the smallest range that holds the rows asked for is read."""
        if len(self.shape) == 1:
            return self._vector()
        out = np.zeros((stop - start, self.shape[-1]), np.float32)
        for number, piece in enumerate(self.pieces):
            if piece.columns is not None:
                out[:, piece.columns] = piece.value.read(start, stop)
                continue
            mine = np.flatnonzero(self._owners[start:stop] == number)
            if len(mine):
                places = self._places[start:stop][mine]
                low = int(places.min())
                out[mine] = piece.value.read(low, int(places.max()) + 1)[places - low]
        return out

    def _vector(self) -> Matrix:
        out = np.zeros((1, self.shape[0]), np.float32)
        for piece in self.pieces:
            out[:, piece.rows if piece.columns is None else piece.columns] = piece.value.read(0, 1)
        return out

    @property
    def _count(self) -> int:
        return self.shape[0] if len(self.shape) == 1 else prod(self.shape[:-1])

    @cached_property
    def _owners(self) -> NDArray[np.intp]:
        """The number of the piece that holds each row."""
        owners = np.full(self._count, _NOWHERE, np.intp)
        for number, piece in enumerate(self.pieces):
            owners[piece.rows] = number
        return owners

    @cached_property
    def _places(self) -> NDArray[np.intp]:
        """Where in its piece each row stands."""
        places = np.full(self._count, _NOWHERE, np.intp)
        for piece in self.pieces:
            places[piece.rows] = np.arange(len(piece.rows))
        return places
