"""The sweep of kernels/wire_sweep.h in torch, for `--device cuda`: all lanes of a column at once.

Written after the formula, not after the kernel: tests hold the two against each other on the CPU. Sums are taken in
another order, so that integers may differ where two paths cost the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from edgepack.quant.wire.factor import PANEL
from edgepack.quant.wire.grid import PLAIN_ERROR, best_factors, next_factors
from edgepack.quant.wire.rates import ERROR, SLOPE
from edgepack.quant.wire.sweep import Swept
from edgepack.quant.wire.trellis import Trellis

if TYPE_CHECKING:
    from edgepack.quant.wire.factor import SweepFactor
    from edgepack.quant.wire.grid import Lattice
    from edgepack.quant.wire.lanes import TrellisRounding


def sweep_torch(
    weights: torch.Tensor,
    factor: SweepFactor,
    lattice: Lattice,
    *,
    pull: float = 0.0,
    paths: TrellisRounding | None = None,
) -> Swept:
    """As `sweep.sweep`, on the device of `weights`; the result is on the CPU."""
    work, upper = weights.clone(), factor.dense().to(weights.device)
    columns = _Columns(lattice, pull, paths)
    losses, failures = torch.zeros(len(work), dtype=torch.float64, device=work.device), 0
    for start in range(0, work.shape[1], PANEL):
        stop = min(start + PANEL, work.shape[1])
        errors, failed = _block(work[:, start:stop], upper[start:stop, start:stop], columns, start)
        failures += failed
        losses += errors.double().square().sum(1)
        work[:, stop:] -= _short(errors) @ upper[start:stop, stop:]
    quants = columns.quants.to(torch.int16).cpu().numpy()
    return Swept(quants, columns.lattice.factors.cpu().numpy(), losses.cpu().numpy(), failures)


def _block(values: torch.Tensor, upper: torch.Tensor, columns: _Columns, first: int) -> tuple[torch.Tensor, int]:
    """Errors over U_kk [out, block] of one block, and groups beyond help; factors are raised until all others fit."""
    columns.begin(values, first)
    while True:
        columns.beyond.zero_()
        work, errors = values.clone(), torch.empty_like(values)
        for column in range(values.shape[1]):
            rounded = columns.round(first + column, work[:, column])
            errors[:, column] = (work[:, column] - rounded) * (1 / upper[column, column])
            work[:, column + 1 :].addr_(_short(errors[:, column]), upper[column, column + 1 :], alpha=-1)
        raised, failed = columns.raise_factors()
        if not raised:
            return errors, failed


def _short(errors: torch.Tensor) -> torch.Tensor:
    """Twelve significant bits, as `factor.twelve_bits` has it, on any device."""
    bits = errors.contiguous().view(torch.int32)
    found = ((bits + 2047 + ((bits >> 12) & 1)) & -4096).view(torch.float32)
    return torch.where(found.abs() < 2.0**-60, 0.0, found)


@dataclass
class _Columns:
    """Rounds columns; keeps the integers and the factors that had to be raised."""

    lattice: Lattice
    pull: float
    paths: TrellisRounding | None
    quants: torch.Tensor = field(init=False)
    beyond: torch.Tensor = field(init=False)
    _trellis: Trellis | None = field(init=False, default=None)
    _squared: torch.Tensor = field(init=False)
    _asked: torch.Tensor = field(init=False)
    _levels: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        steps, factors = self.lattice.steps, self.lattice.factors
        costs = torch.ones_like(steps) if self.paths is None else self.paths.costs.to(steps.device)
        self._squared = costs * steps.square()
        self._levels = 1 / (self._squared[:, None].double() * factors.double().square()).mean(0).float()
        if self.paths is not None:
            self._trellis = Trellis(self.paths.code, self.paths.lanes.to(steps.device), steps.device)
        self.quants = torch.zeros(len(steps), len(self.lattice.multiples), dtype=torch.int32, device=steps.device)
        self.beyond = torch.zeros_like(factors, dtype=torch.float32, memory_format=torch.contiguous_format)
        self._asked = factors

    def begin(self, values: torch.Tensor, first: int) -> None:
        """Choose the factors of a block's groups by what feedback has made of its columns `values` [out, block]."""
        group, stop = self.lattice.group, first + values.shape[1]
        rounding = PLAIN_ERROR if self.paths is None else ERROR
        factors = self.lattice.factors.clone(memory_format=torch.contiguous_format)
        factors[:, first // group : stop // group] = best_factors(values, self.lattice, rounding, slice(first, stop))
        self.lattice = replace(self.lattice, factors=factors)

    def round(self, column: int, values: torch.Tensor) -> torch.Tensor:
        """The final values [out] of one column, given what feedback has made of it [out]."""
        group, most = column // self.lattice.group, int(self.lattice.limits[column])
        step = self.lattice.column_steps(column)
        scaled = values / step
        self.beyond[:, group] = torch.maximum(self.beyond[:, group], scaled.abs() / (most + 1))
        if self._trellis is None:
            magnitude = scaled.abs()
            pulled = (magnitude - self.pull / (magnitude + 1.0)).clamp(0.0, most)
            integers = scaled.sign() * pulled.round()
        else:
            costs = self._squared * self.lattice.factors[:, group].square() * self._levels[group]
            integers = self._trellis.nearest(scaled, column, most, costs, partial(self._penalty, column))
        self.quants[:, column] = (integers * int(self.lattice.multiples[column])).to(torch.int32)
        return integers * step

    def _penalty(self, column: int, integers: torch.Tensor) -> torch.Tensor:
        """What integers [out, 4] cost beside their errors, in squared steps."""
        total = (2 * self.pull) * integers.abs().log1p()
        if self.paths is not None and self.paths.rates is not None:
            group = column // self.lattice.group
            shrink = (self._asked[:, group] / self.lattice.factors[:, group]).square()
            total += SLOPE * self.paths.rates.bits(column, integers, shrink)
        return total

    def raise_factors(self) -> tuple[bool, int]:
        """Raise the first factor of each row that has one too small; whether any, and how many cannot be."""
        lattice = self.lattice
        rows = (self.beyond > 1).any(1).nonzero()[:, 0]
        groups = (self.beyond[rows] > 1).int().argmax(1)
        factors = lattice.factors.clone(memory_format=torch.contiguous_format)
        old, wanted = factors[rows, groups], factors[rows, groups] * self.beyond[rows, groups]
        able, raised = old < lattice.most_factor, next_factors(old, lattice)
        while bool((low := (raised < wanted) & (raised < lattice.most_factor)).any()):
            raised = torch.where(low, next_factors(raised, lattice), raised)
        factors[rows, groups] = raised
        self.lattice = replace(lattice, factors=factors)
        return bool(able.any()), int((~able).sum())
