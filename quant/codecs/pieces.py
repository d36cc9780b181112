"""A matrix in pieces: runs of weights of a wanted multiple, what stages have left over, arrays filled piece by piece.

What a codec does with pieces is left to the codecs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.quant.codecs.codec import check_weight, row_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edgepack.quant.codecs.codec import Component, Decoder, RowSource


def row_pieces(source: RowSource) -> Iterator[NDArray[np.float32]]:
    """The rows in order, a chunk at a time: float32 [n, columns], contiguous.

    Raises:
        NumericError: NaN or infinity.
    """
    for start, stop in row_chunks(*source.matrix_shape):
        yield check_weight(source.read_rows(start, stop))


def runs(source: RowSource, multiple: int, at_least: int = 1) -> Iterator[NDArray[np.float32]]:
    """The weights in file order: float32 [n], n a multiple of `multiple` but for the last run.

    Args:
        source: the matrix.
        multiple: of weights.
        at_least: weights of a run, but for the last; a chunk of rows more than that at most.

    Raises:
        NumericError: NaN or infinity.
    """
    waiting: list[NDArray[np.float32]] = []
    left = source.matrix_shape[0] * source.matrix_shape[1]
    for rows in row_pieces(source):
        waiting.append(rows.reshape(-1))
        left -= rows.size
        if left and sum(part.size for part in waiting) < max(at_least, multiple):
            continue
        flat = waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
        whole = flat.size // multiple * multiple if left else flat.size
        waiting = [flat[whole:]] if whole < flat.size else []
        yield flat[:whole]


def sampled_rows(source: RowSource, weights: int, group: int) -> NDArray[np.float32]:
    """Groups of consecutive rows, evenly taken: float32 [n, columns]; all rows where they are few enough.

    Args:
        source: the matrix.
        weights: at most so many, or one group.
        group: rows of a group.
    """
    rows, columns = source.matrix_shape
    if rows * columns <= max(weights, group * columns):
        return whole_matrix(source)
    count = max(1, weights // (group * columns))
    starts = np.linspace(0, rows - group, count).astype(int).tolist()
    return np.concatenate([source.read_rows(start, start + group) for start in starts])


def row_groups(source: RowSource, multiple: int, weights: int) -> Iterator[NDArray[np.float32]]:
    """The rows in order: float32 [n, columns], n a multiple of `multiple` but for the last, about `weights` of them.

    Raises:
        NumericError: NaN or infinity.
    """
    rows, columns = source.matrix_shape
    step = max(1, weights // (multiple * columns)) * multiple
    for start in range(0, rows, step):
        yield check_weight(source.read_rows(start, min(start + step, rows)))


def whole_matrix(source: RowSource) -> NDArray[np.float32]:
    """All rows, float32 [rows, columns]: for codecs that need them at once."""
    return source.read_rows(0, source.matrix_shape[0])


class Filled:
    """An array of a known length that is made part by part, so that parts need not be kept beside the whole.

    Args:
        component: its type and length.
    """

    def __init__(self, component: Component) -> None:
        self._array = np.empty(component.count, dtype=component.dtype)
        self._length = 0

    def add(self, part: NDArray[Any]) -> None:
        """Put a part, of any shape, behind those before it."""
        self._array[self._length : self._length + part.size] = part.reshape(-1)
        self._length += part.size

    def whole(self) -> NDArray[Any]:
        """The array, once all parts are there."""
        assert self._length == self._array.size, f"expected {self._array.size} items, got {self._length}"
        return self._array


@dataclass(frozen=True)
class LeftOver:
    """What a coded stage has left of a matrix, as a `RowSource`: decoded again at every reading.

    Attributes:
        source: the matrix.
        decoder: of the stage.
    """

    source: RowSource
    decoder: Decoder

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """As `RowSource.matrix_shape`."""
        return self.source.matrix_shape

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """As `RowSource.read_rows`."""
        return self.source.read_rows(start, stop) - self.decoder.rows(start, stop)
