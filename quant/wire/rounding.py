"""Puts one matrix on its lattice, errors fed back along the columns: nearest integers, or the best paths of a trellis.

On the CPU by the kernel, elsewhere in torch. Where the lattice comes from is left to `grid` and the export.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from edgepack.errors import NumericError
from edgepack.quant.wire.grid import Lattice, fitted
from edgepack.quant.wire.sweep import sweep
from edgepack.quant.wire.torch_sweep import sweep_torch

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from edgepack.quant.wire.factor import SweepFactor
    from edgepack.quant.wire.lanes import TrellisRounding


@dataclass(frozen=True)
class Rounded:
    """A matrix on its lattice, on the CPU.

    Attributes:
        lattice: of the result; some factors may be raised.
        quants: int16 [out, in], multiples included, factors not.
        losses: float64 [out], a row's share of tr(E H Eᵀ): the squared error, weighted by the curvature at the inputs.
    """

    lattice: Lattice
    quants: torch.Tensor
    losses: torch.Tensor

    @property
    def weights(self) -> torch.Tensor:
        """float32 [out, in]."""
        factors = self.lattice.factors.repeat_interleave(self.lattice.group, 1)
        return self.quants * factors * self.lattice.steps[:, None]


def round_matrix(
    weights: torch.Tensor,
    factor: SweepFactor,
    lattice: Lattice,
    *,
    pull: float = 0.0,
    paths: TrellisRounding | None = None,
    pool: Executor | None = None,
) -> Rounded:
    """Put `weights` [out, in] on `lattice`; groups that overflow the host get twice the step, or more.

    Does not modify its input.

    Args:
        weights: float32.
        factor: of the inputs' second moment.
        lattice: steps and multiples, on the weights' device.
        pull: rate-distortion: how far towards zero a value is pulled before rounding, in steps for each step of its
            magnitude (0 for none).
        paths: rounding by the paths of a trellis; the nearest integers where None.
        pool: whose threads share the rows; the caller's thread alone where None.

    Raises:
        NumericError: a group does not fit with the greatest factor of the host.
    """
    lattice = fitted(weights, lattice)
    if weights.device.type == "cpu":
        swept = sweep(weights, factor, lattice, pull=pull, paths=paths, pool=pool)
    else:
        swept = sweep_torch(weights, factor, lattice, pull=pull, paths=paths)
    if swept.failures:
        most = int(lattice.limits.max())
        raise NumericError(f"{swept.failures} rows do not fit into integers up to {most}: use a larger host")
    raised = replace(
        lattice, steps=lattice.steps.cpu(), factors=torch.from_numpy(swept.factors), multiples=lattice.multiples.cpu(),
        limits=lattice.limits.cpu(),
    )  # fmt: skip
    return Rounded(raised, torch.from_numpy(swept.quants), torch.from_numpy(swept.losses))
