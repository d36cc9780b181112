"""Tensors of a checkpoint that are stored in a type of ggml's already, and what may be done to them as they are.

A file takes their blocks untouched (`export.rows.StoredBlocks`); how a format stores them is left to
`export.formats`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from edgepack.export.rows import SourceRows, StoredBlocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.export.row_origin import RowOrigin
    from edgepack.export.rows import Matrix, Rows
    from edgepack.gguf.types import GGMLType
    from edgepack.model import TensorSource

    Blocks = NDArray[np.uint8]


@runtime_checkable
class BlockSource(Protocol):
    """A tensor source that also gives blocks of ggml's types."""

    def block_type(self, name: str) -> GGMLType | None:
        """The type that tensor `name` is stored in, None where it is none of ggml's quantised ones."""
        ...

    def read_blocks(self, name: str, start: int, stop: int) -> Blocks:
        """Rows `start` to `stop` (not included) as they are stored: uint8, shape [rows, bytes of a row]."""
        ...


@dataclass(frozen=True)
class BlockRows(SourceRows):
    """Rows of a tensor that a source holds in blocks."""

    blocks: BlockSource
    stored_type: GGMLType

    def read_blocks(self, start: int, stop: int) -> Blocks:
        """As `StoredBlocks.read_blocks`."""
        return self.blocks.read_blocks(self.name, start, stop)


def source_rows(source: TensorSource, name: str) -> SourceRows:
    """A checkpoint's tensor as rows, with its blocks where it is stored in some."""
    kind = source.block_type(name) if isinstance(source, BlockSource) else None
    if kind is None or not isinstance(source, BlockSource):
        return SourceRows(source, name)
    return BlockRows(source, name, source, kind)


@dataclass(frozen=True)
class AlternateRows:
    """Every other row of a tensor, counted over all of its leading dimensions, from row `first` (0 or 1)."""

    base: Rows
    first: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Half as many rows; the base's shape where they are no pairs."""
        *leading, rows, columns = self.base.shape if len(self.base.shape) > 1 else (1, *self.base.shape)
        return (*leading, rows // 2, columns) if rows % 2 == 0 else self.base.shape

    @property
    def origin(self) -> RowOrigin:
        """As `Rows.origin`."""
        return self.base.origin.take(slice(self.first, None, 2))

    @property
    def dtype(self) -> str:
        """The base's type."""
        return self.base.dtype

    def read(self, start: int, stop: int) -> Matrix:
        """As `Rows.read`."""
        return self.base.read(2 * start, 2 * stop)[self.first :: 2]


@dataclass(frozen=True)
class AlternateBlocks(AlternateRows):
    """The same of rows that are stored in blocks."""

    stored: StoredBlocks

    @property
    def stored_type(self) -> GGMLType:
        """The type of the blocks."""
        return self.stored.stored_type

    def read_blocks(self, start: int, stop: int) -> Blocks:
        """As `StoredBlocks.read_blocks`."""
        return np.ascontiguousarray(self.stored.read_blocks(2 * start, 2 * stop)[self.first :: 2])


def alternate(rows: Rows, first: int) -> Rows:
    """Rows `first`, `first` + 2, … of every matrix of a stack, in blocks where they are stored in some."""
    return AlternateBlocks(rows, first, rows) if isinstance(rows, StoredBlocks) else AlternateRows(rows, first)
