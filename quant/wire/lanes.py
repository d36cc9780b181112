"""Rows of stacked matrices cut into lanes, one path of a trellis each; which path is left to the sweeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.quant.wire.rates import RateModel
    from edgepack.trellis import TrellisCode


@dataclass(frozen=True)
class Lanes:
    """Lanes of rows; none crosses from one matrix to the next.

    Attributes:
        rows: int64 [length, lanes], row of each position; any row behind a lane's end.
        real: bool [length, lanes], False behind a lane's end.
    """

    rows: torch.Tensor
    real: torch.Tensor

    @classmethod
    def cut(cls, heights: Sequence[int], length: int, aside: torch.Tensor) -> Lanes:
        """The lanes of matrices of so many rows; rows `aside` (bool [rows]) are in none.

        Each is the rest of at most `length` consecutive rows of a matrix, counted from the matrix' first.
        """
        windows, first = [], 0
        for height in heights:
            windows.append(first + torch.arange(height, device=aside.device) // length)
            first += -(-height // length)
        return cls._of(torch.cat(windows), (~aside).nonzero()[:, 0])

    @classmethod
    def _of(cls, windows: torch.Tensor, kept: torch.Tensor) -> Lanes:
        """Lanes of the rows `kept` (numbers, increasing), one for each of `windows` [all rows] that has any."""
        _, lane, sizes = windows[kept].unique_consecutive(return_inverse=True, return_counts=True)
        position = torch.arange(len(kept), device=kept.device) - (sizes.cumsum(0) - sizes)[lane]
        longest = int(sizes.max()) if len(sizes) else 0
        rows = torch.zeros(longest, len(sizes), dtype=torch.int64, device=kept.device)
        real = torch.zeros_like(rows, dtype=torch.bool)
        rows[position, lane], real[position, lane] = kept, True
        return cls(rows, real)

    def to(self, device: torch.device) -> Lanes:
        """On a device."""
        return Lanes(self.rows.to(device), self.real.to(device))


@dataclass(frozen=True)
class TrellisRounding:
    """Rounding by paths in place of the nearest integers.

    Attributes:
        code: of the trellis; the integers' lowest bits follow it.
        lanes: of the rows.
        costs: float32 [rows], what a squared error of a weight costs in each row.
        rates: what the integers will cost; None where only errors count.
    """

    code: TrellisCode
    lanes: Lanes
    costs: torch.Tensor
    rates: RateModel | None = None
