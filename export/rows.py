"""Tensors that are read by rows: what all of them offer, and the two that others are made of.

Rows in another arrangement are `arranged_rows`', rows whose values change `row_functions`'.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from edgepack.errors import NumericError
from edgepack.export.row_origin import RowOrigin

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.gguf.types import GGMLType
    from edgepack.model import TensorSource

    Matrix = NDArray[np.float32]


class Rows(Protocol):
    """A tensor that is read by rows; a vector is one row. Reading is thread-safe."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Row-major shape."""
        ...

    @property
    def dtype(self) -> str:
        """Storage type of the source, as `TensorSpec.dtype`."""
        ...

    @property
    def origin(self) -> RowOrigin:
        """Which rows of which of the checkpoint's tensors these are; costs no reading."""
        ...

    def read(self, start: int, stop: int) -> Matrix:
        """Rows `start` (included) to `stop` (not included): float32, shape [stop - start, columns]."""
        ...


def row_count(shape: tuple[int, ...]) -> int:
    """Rows of which `Rows.origin` speaks: all dimensions but the last, a vector's elements."""
    return shape[0] if len(shape) == 1 else prod(shape[:-1])


@runtime_checkable
class StoredBlocks(Protocol):
    """Rows that are stored in a type of ggml's, so that an output of that type takes them untouched."""

    @property
    def stored_type(self) -> GGMLType:
        """The type of the blocks."""
        ...

    def read_blocks(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows `start` (included) to `stop` (not included): uint8, shape [stop - start, bytes of a row]."""
        ...


@dataclass(frozen=True)
class SourceRows:
    """A checkpoint's tensor as it is; its trailing dimensions may be folded into `shape`."""

    source: TensorSource
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's own shape."""
        return self.source.specs[self.name].shape

    @property
    def dtype(self) -> str:
        """The tensor's own type."""
        return self.source.specs[self.name].dtype

    @property
    def origin(self) -> RowOrigin:
        """As `Rows.origin`: all rows."""
        return RowOrigin.of_tensor(self.name, row_count(self.shape))

    def read(self, start: int, stop: int) -> Matrix:
        """As `Rows.read`.

        Raises:
            NumericError: a weight is NaN or infinite; here, where its own name and position are known.
        """
        rows = self.source.read_rows(self.name, start, stop)
        with np.errstate(over="ignore", invalid="ignore"):
            suspect = not np.isfinite(rows.sum())  # one pass; a finite sum has only finite terms
        if suspect:
            self._refuse_non_finite(rows, start)
        return rows

    def _refuse_non_finite(self, rows: Matrix, start: int) -> None:
        bad = np.argwhere(~np.isfinite(rows))
        if len(bad):  # none: the sum of finite weights overflowed
            row, column = (int(at) for at in bad[0])
            flat = (start + row) * rows.shape[1] + column
            position = [int(at) for at in np.unravel_index(flat, self.shape)]
            raise NumericError(f"tensor '{self.name}': expected finite weights, got {rows[row, column]} at {position}")


@dataclass(frozen=True)
class ArrayRows:
    """A tensor that is computed, not read, such as rope factors."""

    array: NDArray[np.float32]
    dtype: str = "f32"

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.array.shape

    @property
    def origin(self) -> RowOrigin:
        """As `Rows.origin`: none."""
        return RowOrigin.computed(row_count(self.shape))

    def read(self, start: int, stop: int) -> Matrix:
        """As `Rows.read`."""
        columns = self.array.shape[-1] if self.array.shape else 1
        return np.array(self.array.reshape(-1, columns)[start:stop], dtype=np.float32)
