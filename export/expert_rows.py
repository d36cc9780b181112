"""Expert stacks whose matrices are stored transposed, as some checkpoints of fused experts have them.

Which family's are is data in `export.architectures`; other expressions stand in `export.arranged_rows`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgepack.export.row_origin import RowOrigin
from edgepack.export.rows import row_count

if TYPE_CHECKING:
    from edgepack.export.rows import Matrix, Rows


@dataclass(frozen=True)
class TransposedExperts:
    """Every expert's matrix transposed: base [experts, columns, rows] → [experts, rows, columns].

    The expert that is being read is held whole and let go after its last row, so memory is one expert.
    """

    base: Rows
    _held: dict[int, Matrix] = field(default_factory=dict, compare=False, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The base's shape with its last two dimensions exchanged."""
        experts, columns, rows = self.base.shape
        return (experts, rows, columns)

    @property
    def dtype(self) -> str:
        """The base's type."""
        return self.base.dtype

    @property
    def origin(self) -> RowOrigin:
        """As `Rows.origin`: computed, as every row is a column."""
        return RowOrigin.computed(row_count(self.shape), self.base.origin.names)

    def read(self, start: int, stop: int) -> Matrix:
        """As `Rows.read`."""
        pieces, per = [], self.shape[1]
        while start < stop:
            expert, row = divmod(start, per)
            end = min(stop, (expert + 1) * per)
            pieces.append(np.ascontiguousarray(self._expert(expert)[:, row : row + end - start].T))
            if end == (expert + 1) * per:
                self._held.pop(expert, None)
            start = end
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _expert(self, expert: int) -> Matrix:
        """Float32 [columns, rows]; two threads that ask at once read twice."""
        held = self._held.get(expert)
        if held is None:
            per = self.base.shape[1]
            held = self.base.read(expert * per, (expert + 1) * per)
            self._held[expert] = held
        return held
