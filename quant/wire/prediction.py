"""How many bits a matrix will take at any scale, predicted from a sample of its rows before it is rounded.

The density is that of `rates`: what the archive's coder will find. Predictions are smooth in the scale and proportional
to the truth within some per cent, which is what a search needs; the truth is left to the archive.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.quant.wire.rates import ERROR, exponent_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.quant.wire.factor import SweepFactor

_MOST_ROWS, _MOST_COLUMNS = 512, 128  # of a sample that are looked at one by one
_LEAST, _MOST, _PER_OCTAVE = -12.0, 22.0, 4  # log2 of the mean squares that are tabulated


@cache
def _entropies() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """log2 of mean squares in steps of the union grid, and bits of an index, the mean of both quantisers."""
    levels = np.arange(_LEAST, _MOST + 1 / _PER_OCTAVE, 1 / _PER_OCTAVE)
    halves = torch.arange(-8192, 8193, dtype=torch.float64) + torch.tensor([[0.0], [0.5]])
    bits = []
    for level in levels:
        exponents = exponent_of(halves / 2.0 ** (level / 2 - 1)).clamp_max(
            1000.0
        )  # 2^-1000 is nothing, but no infinity
        weights = torch.exp2(-exponents)
        totals = weights.sum(1)
        bits.append(float(((weights * exponents).sum(1) / totals + totals.log2()).mean()))
    return levels, np.array(bits)


@dataclass(frozen=True)
class Spread:
    """How large the weights of matrices that read one input are beside their steps at scale 1.

    Attributes:
        rows: mean squares of a sample of rows, in steps of the union grid, float64 [n].
        columns: mean squares of some columns over those of all, float64 [m].
        noise: of those columns, as `SweepFactor` has it, float64 [m].
        weights: how many they stand for.
    """

    rows: NDArray[np.float64]
    columns: NDArray[np.float64]
    noise: NDArray[np.float64]
    weights: int

    @classmethod
    def of(cls, sample: torch.Tensor, steps: torch.Tensor, factor: SweepFactor, weights: int) -> Spread:
        """From a sample of rows [n, in] and their steps of the union grid at scale 1 [n], columns at 1 over U_kk."""
        units = steps.double().numpy()[:, None] * factor.diagonal.astype(np.float64)
        squares = np.square(sample.numpy() / units)
        rows, columns = squares.mean(1), squares.mean(0) / max(float(squares.mean()), 1e-300)
        some = np.linspace(0, len(columns) - 1, min(len(columns), _MOST_COLUMNS)).round().astype(int)
        few = np.linspace(0, len(rows) - 1, min(len(rows), _MOST_ROWS)).round().astype(int)
        return cls(rows[few], columns[some], factor.noise[some].astype(np.float64), weights)

    def bits(self, scale: float) -> float:
        """Of all weights together."""
        rows = self.rows / scale**2
        squares = rows[:, None] * self.columns + np.minimum(rows, ERROR)[:, None] * self.noise
        levels, bits = _entropies()
        return self.weights * float(np.interp(np.log2(np.maximum(squares, 2.0**_LEAST)), levels, bits).mean())
