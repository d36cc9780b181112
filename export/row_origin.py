"""Which rows of which of the checkpoint's tensors make a GGUF tensor: the answer of `Rows.origin`.

Every expression of `export.arranged_rows` says it of itself. What is done with the answer, adapters rearranged, moments
of inputs looked up, curvature gathered, is left to those who ask.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

COMPUTED = -1  # stands for a row that is not one row (or column) of one tensor


@dataclass(frozen=True)
class RowOrigin:
    """Where the rows of a GGUF tensor come from, in order; dimensions before the last count as one.

    Of a vector the elements are meant wherever rows are. Weights may have been shifted by a constant on the way.

    Attributes:
        names: every tensor of the checkpoint that is read, in the order in which it first occurs.
        parts: int [rows], index into `names`; COMPUTED for a row that is made of anything but one row.
        rows: int [rows], the row in that tensor; COMPUTED as in `parts`.
        transposed: those of `names` whose columns are meant, where `rows` speaks of rows.
        factors: float32 [rows], what each row is multiplied with; None for one.
        columns: int [columns], column i is the source's column `columns[i]`; None where they are as they were.
    """

    names: tuple[str, ...]
    parts: NDArray[np.intp]
    rows: NDArray[np.intp]
    transposed: frozenset[str] = frozenset()
    factors: NDArray[np.float32] | None = None
    columns: NDArray[np.intp] | None = None

    @classmethod
    def of_tensor(cls, name: str, count: int) -> RowOrigin:
        """All `count` rows of a tensor, as they are."""
        return cls((name,), np.zeros(count, np.intp), np.arange(count, dtype=np.intp))

    @classmethod
    def computed(cls, count: int, names: Iterable[str] = ()) -> RowOrigin:
        """`count` rows that are no single rows of a tensor, though they may depend on `names`."""
        rows = np.full(count, COMPUTED, np.intp)
        return cls(tuple(dict.fromkeys(names)), rows, rows)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def is_linear(self) -> bool:
        """Whether every row is one row or column of a tensor times a factor: changes of that one can be followed."""
        return not bool((self.parts == COMPUTED).any())

    @property
    def is_plain(self) -> bool:
        """Whether every row is one row of a tensor, its weights as they are and in their order."""
        return self.is_linear and not self.transposed and self.factors is None and self.columns is None

    def take(self, order: NDArray[np.intp] | slice) -> RowOrigin:
        """The rows `order`."""
        factors = None if self.factors is None else self.factors[order]
        return replace(self, parts=self.parts[order], rows=self.rows[order], factors=factors)

    def scaled(self, factor: float) -> RowOrigin:
        """Every row times `factor`."""
        factors = np.ones(len(self), np.float32) if self.factors is None else self.factors
        return replace(self, factors=factors * np.float32(factor))

    def scaled_each(self, factors: NDArray[np.float32]) -> RowOrigin:
        """Row i times `factors[i]`."""
        return replace(self, factors=factors if self.factors is None else self.factors * factors)

    def with_columns(self, order: NDArray[np.intp]) -> RowOrigin:
        """Column i becomes column `order[i]`."""
        return replace(self, columns=order if self.columns is None else self.columns[order])

    def of_part(self, part: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Which rows come from `names[part]`, and which of its rows they are."""
        mine = np.flatnonzero(self.parts == part)
        return mine, self.rows[mine]

    def gather(self, vectors: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """One number for each row, from one vector [rows] for each tensor of the checkpoint; factors are left out."""
        result = np.empty(len(self), np.float32)
        for part, name in enumerate(self.names):
            mine, rows = self.of_part(part)
            result[mine] = vectors[name][rows]
        return result


def joined(origins: Sequence[RowOrigin]) -> RowOrigin:
    """Rows of several origins, one below the other."""
    names = tuple(dict.fromkeys(name for origin in origins for name in origin.names))
    turned = frozenset[str]().union(*(origin.transposed for origin in origins))
    straight = {name for origin in origins for name in origin.names if name not in origin.transposed}
    if turned & straight or any(not _alike(origin.columns, origins[0].columns) for origin in origins):
        return RowOrigin.computed(sum(map(len, origins)), names)
    places = [np.array([names.index(name) for name in origin.names] + [COMPUTED], np.intp) for origin in origins]
    factors = None
    if any(origin.factors is not None for origin in origins):
        factors = np.concatenate([origin.scaled(1.0).factors for origin in origins])
    return RowOrigin(
        names,
        np.concatenate([place[origin.parts] for place, origin in zip(places, origins, strict=True)]),
        np.concatenate([origin.rows for origin in origins]),
        turned, factors, origins[0].columns,
    )  # fmt: skip


def _alike(a: NDArray[np.intp] | None, b: NDArray[np.intp] | None) -> bool:
    return a is b or (a is not None and b is not None and bool(np.array_equal(a, b)))
