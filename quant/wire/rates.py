"""What an entropy coder will take for an integer on a trellis, before it is known: for rate-distortion paths.

A path that looked at errors alone would pay a bit a weight for rows that deserve next to none, since it leaves zero
whenever that makes the error a little smaller. How integers are really coded is `edgepack.packaging`'s.

Source: entropy-constrained trellis-coded quantisation, T. R. Fischer and M. Wang, IEEE Trans. IT-38 (1992).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from edgepack.quant.wire.factor import SweepFactor
    from edgepack.quant.wire.grid import Lattice

# Mean squared error of eight states, in steps of the union grid (tools/trellis_gain.py), and its slope: at high rates
# one bit less costs 2 ln 2 times the error.
ERROR = 0.264
SLOPE = 2 * math.log(2) * ERROR
ASIDE = 1.0  # union steps: a row of smaller weights gains nothing from paths that it shares with larger ones
_LAPLACE = 0.4  # between a Gaussian's and Laplace's logarithm of the density: what the coder finds in real matrices
_LADDER = 8  # normalisers are kept for scales of 2^(n / 8)
_LOWEST, _HIGHEST = -6, 9  # logarithms of the scales kept, included


@cache
def normalisers() -> torch.Tensor:
    """Bits of the normaliser of the indices, for each quantiser and each scale on the ladder: float32 [2, scales]."""
    scales = torch.exp2(torch.arange(_LOWEST * _LADDER, _HIGHEST * _LADDER + 1, dtype=torch.float64) / _LADDER)
    halves = torch.arange(-4096, 4097, dtype=torch.float64) + torch.tensor([[0.0], [0.5]])
    return torch.stack([torch.exp2(-exponent_of(halves / scale)).sum(1) for scale in scales], 1).log2().float()


def exponent_of(scaled: torch.Tensor) -> torch.Tensor:
    """-log2 of the density, but for its normaliser, at so many scales from the middle."""
    x = scaled.abs()
    return ((1 - _LAPLACE) * x.square() / 2 + _LAPLACE * math.sqrt(2) * x) / math.log(2)


@dataclass(frozen=True)
class RateModel:
    """Scales of the integers of a matrix.

    Attributes:
        rows: float32 [out], typical magnitude of a row's values in steps of the union grid.
        columns: float32 [in], of a column's relative to its rows'.
        noise: float32 [in], as `SweepFactor` has it.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    noise: torch.Tensor

    @classmethod
    def of(cls, weights: torch.Tensor, factor: SweepFactor, lattice: Lattice) -> RateModel:
        """From weights [out, in] that will be swept; errors that wait to be made good widen later columns."""
        squares = (weights / lattice.weight_steps).square()
        mean = squares.mean().clamp_min(1e-12)
        noise = torch.from_numpy(factor.noise).to(weights.device)
        return cls(squares.mean(1).sqrt(), (squares.mean(0) / mean).sqrt(), noise)

    def below(self, level: float = ASIDE) -> torch.Tensor:
        """Rows whose typical magnitude is less than `level` steps, bool [out]: they had better stand aside."""
        return self.rows < level

    def bits(self, column: int, integers: torch.Tensor, shrink: torch.Tensor | float = 1.0) -> torch.Tensor:
        """Of integers [out, 4], one of each subset modulo 4, in the same shape.

        Args:
            column: its number.
            integers: what each subset offers.
            shrink: squares of the steps expected over those that the group got [out].
        """
        errors = self.rows.square().clamp_max(ERROR)  # rows below the water level become zeros
        scales = (self.rows * self.columns[column]).square() * shrink + self.noise[column] * errors
        scales = scales.sqrt().clamp_min(1e-6) / 2
        places = ((scales.log2().clamp(_LOWEST, _HIGHEST) - _LOWEST) * _LADDER).round().long()
        return exponent_of(integers / (2 * scales[:, None])) + normalisers().to(integers.device).T[places].repeat(1, 2)
