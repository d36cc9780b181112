"""Relative steps of rows: by the curvature at their outputs, or, without allocation, by the spread of their matrix.

Which scalar multiplies all of them is left to the search, what columns have to `grid`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.quant.wire.grid import row_scale

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepack.export.plan import PlannedTensor
    from edgepack.export.rows import Rows
    from edgepack.export.wire.curvatures import MatrixCurvatures

TABLE = "token_embd.weight"
_ROW_FLOOR = 0.01  # of the mean output curvature, added to each row's
_TABLE_FLOOR = 0.05  # of the mean, for rows of embedding and head: tokens that the calibration text lacks


@dataclass(frozen=True)
class RowSteps:
    """Relative steps of the matrices that go onto grids.

    Attributes:
        matrices: their plans.
        sources: GGUF name → rows.
        costs: their curvature.
        by_row: whether rows have steps of their own.
        by_matrix: whether matrices have steps by their curvature; else steps are proportional to their weights.
    """

    matrices: Sequence[PlannedTensor]
    sources: Mapping[str, Rows]
    costs: MatrixCurvatures
    by_row: bool
    by_matrix: bool

    def of(self, tensor: PlannedTensor) -> torch.Tensor:
        """Of a matrix's unfolded rows, float64 [out]."""
        relative = self._by_curvature(tensor)
        if self.by_matrix:
            return relative
        return relative / _geometric_mean(relative) * self._spread(tensor) * self._unit

    def _by_curvature(self, tensor: PlannedTensor) -> torch.Tensor:
        outputs = self.costs.outputs(tensor.info)
        outputs = outputs if self.by_row else torch.full_like(outputs, float(outputs.mean()))
        return row_scale(outputs, _TABLE_FLOOR if tensor.info.name in (TABLE, "output.weight") else _ROW_FLOOR)

    def _spread(self, tensor: PlannedTensor) -> float:
        """Root mean square of a matrix' weights."""
        rows = self.sources[tensor.info.name]
        return float(np.sqrt(np.square(rows.read(0, tensor.info.rows), dtype=np.float64).mean()))

    @cached_property
    def _unit(self) -> float:
        """Step over spread of the weights that gives all matrices together the bits that steps by curvature give."""
        total = weights = 0.0
        for tensor in self.matrices:
            steps, size = _geometric_mean(self._by_curvature(tensor)), prod(tensor.info.shape)
            total += size * math.log(steps / self._spread(tensor))
            weights += size
        return math.exp(total / weights)


def _geometric_mean(values: torch.Tensor) -> float:
    return float(values.log().mean().exp())
