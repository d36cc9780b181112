"""Which checkpoint rows the rows of a GGUF matrix are: found by mapping numbered rows as the export maps weights.

Every family's permutations, slices and joins are followed without knowing any of them. What is done with the
answer is left to `wire`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import UnsupportedModelError
from edgepack.export.mapped_model import map_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgepack.export.rows import Rows
    from edgepack.model import Checkpoint, TensorSource, TensorSpec

_MOST_ROWS = 1 << 24  # float32 counts exactly up to here


@dataclass(frozen=True)
class RowNumbers:
    """A source of the same tensors whose every weight is the number of its row, counted over all tensors."""

    base: TensorSource
    first: Mapping[str, int]

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """As the base has them."""
        return self.base.specs

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `TensorSource.read_rows`."""
        numbers = np.arange(start, stop, dtype=np.float32) + np.float32(self.first[name])
        return np.repeat(numbers[:, None], self.specs[name].columns, axis=1)


@dataclass(frozen=True)
class Origin:
    """Where the rows of a GGUF matrix come from.

    Attributes:
        names: checkpoint names, in the order in which they first occur.
        parts: int [rows], index into `names`.
        rows: int [rows], the row in that tensor.
    """

    names: tuple[str, ...]
    parts: NDArray[np.intp]
    rows: NDArray[np.intp]

    def gather(self, vectors: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """One number for each row, from one vector [rows] for each checkpoint tensor."""
        result = np.empty(len(self.rows), np.float32)
        for part, name in enumerate(self.names):
            mine = self.parts == part
            result[mine] = vectors[name][self.rows[mine]]
        return result


class Origins:
    """Origins of all matrices of a checkpoint.

    Args:
        checkpoint: only read.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        specs = checkpoint.tensors.specs
        ends = list(accumulate(spec.rows for spec in specs.values()))
        self._names = list(specs)
        self._starts = np.array([0, *ends[:-1]])
        if ends[-1] > _MOST_ROWS:
            raise UnsupportedModelError(f"wire: expected at most {_MOST_ROWS} rows in all matrices, got {ends[-1]}")
        numbered = RowNumbers(checkpoint.tensors, dict(zip(self._names, self._starts.tolist(), strict=True)))
        self._known: dict[str, Origin] = {}
        self._tensors: Mapping[str, Rows] = map_checkpoint(replace(checkpoint, tensors=numbered)).tensors

    def of(self, name: str) -> Origin:
        """The origin of GGUF matrix `name`.

        Raises:
            UnsupportedModelError: its rows are not rows of the checkpoint (a transposed or computed matrix).
        """
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: str) -> Origin:
        rows = self._tensors[name]
        numbers = rows.read(0, rows.shape[0])
        tensors = np.searchsorted(self._starts, numbers[:, 0], "right") - 1
        if (numbers != numbers[:, :1]).any() or tensors.min() < 0:
            raise UnsupportedModelError(f"wire: rows of '{name}' are not rows of the checkpoint")
        found = list(dict.fromkeys(tensors.tolist()))
        parts = np.array([found.index(tensor) for tensor in tensors.tolist()], dtype=np.intp)
        return Origin(
            tuple(self._names[tensor] for tensor in found),
            parts,
            (numbers[:, 0] - self._starts[tensors]).astype(np.intp),
        )
