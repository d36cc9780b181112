"""Puts one matrix on a grid of integers: a step a row, a multiple a column, errors fed back along the columns.

The steps make every weight's rounding cost the model about the same, which is what an entropy coder wants: for the
curvature tr(G E H Eᵀ) an error in row r and column k costs G_rr / U_kk² after feedback (H⁻¹ = UᵀU), so at equal
bytes the least total cost has steps proportional to U_kk / √G_rr (reverse water-filling at high rate). One scalar
for the whole model then decides its size. The integers are the nearest ones, or the best path's of a trellis. Bytes
and files are left to `edgepack.packaging` and `export`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from edgepack.errors import NumericError
from edgepack.quant.feedback import FeedbackFactor, feedback_sweep
from edgepack.quant.wire.rates import SLOPE, RateModel
from edgepack.quant.wire.trellis import Lanes, Trellis

if TYPE_CHECKING:
    from edgepack.trellis import TrellisCode

LADDER = 4  # steps lie on a ladder of 2^(1/4): at most 9 % off, which costs 0.004 bit, and few values to store
_SMALLEST_STEP = 2.0**-14  # of normal float16
_LARGEST_STEP = 4094.0  # 16 times this is a float16: the minima of Q5_K
_RAISES = 32  # times that overflowing groups are given twice the step before giving up


@dataclass(frozen=True)
class Lattice:
    """Where the weights of a matrix may lie: step · factor · multiple · integer.

    Attributes:
        steps: float32 [out], the row's step, exactly a float16.
        factors: int32 [out, groups], what the host multiplies a group's step with.
        multiples: int32 [in], multiples that the integers of a column are held to.
        limits: int32 [in], the greatest magnitude that the column's integer may have, before its multiple.
        most_factor: the greatest factor that the host can hold.
    """

    steps: torch.Tensor
    factors: torch.Tensor
    multiples: torch.Tensor
    limits: torch.Tensor
    most_factor: int

    @property
    def group(self) -> int:
        """Columns that share a factor."""
        return int(len(self.multiples) // self.factors.shape[1])

    def rows(self, chosen: torch.Tensor | slice) -> Lattice:
        """The lattice of some rows."""
        return replace(self, steps=self.steps[chosen], factors=self.factors[chosen])

    @property
    def weight_steps(self) -> torch.Tensor:
        """Distance of neighbouring values at every weight, float32 [out, in]."""
        return self.factors.repeat_interleave(self.group, 1) * self.multiples * self.steps[:, None]

    def column_steps(self, column: int) -> torch.Tensor:
        """Distance of neighbouring values in a column, float32 [out]."""
        return self.steps * self.factors[:, column // self.group] * int(self.multiples[column])


@dataclass(frozen=True)
class Rounded:
    """A matrix on its lattice.

    Attributes:
        lattice: of the result; some factors may be raised.
        quants: int32 [out, in], multiples included, factors not.
        loss: curvature-weighted squared error, in units of the weights'.
    """

    lattice: Lattice
    quants: torch.Tensor
    loss: float

    @property
    def weights(self) -> torch.Tensor:
        """float32 [out, in]."""
        factors = self.lattice.factors.repeat_interleave(self.lattice.group, 1)
        return self.quants * factors * self.lattice.steps[:, None]


def ladder(values: torch.Tensor) -> torch.Tensor:
    """The nearest powers of 2^(1/LADDER) to positive numbers, float64."""
    return torch.exp2((values.double().log2() * LADDER).round() / LADDER)


def half(values: torch.Tensor, bits: int = 11) -> torch.Tensor:
    """The nearest float16 steps that hosts may have, of at most `bits` significant bits, as float32."""
    clamped = values.float().clamp(_SMALLEST_STEP, _LARGEST_STEP)
    if bits < 11:
        unit = torch.exp2(clamped.log2().floor() - (bits - 1))
        clamped = (clamped / unit).round() * unit
    return clamped.to(torch.float16).float()


def row_scale(outputs: torch.Tensor, floor: float) -> torch.Tensor:
    """1/√G_rr [out] on the ladder, with `floor` of the mean added: rows that the text never used keep some precision.

    A matrix whose outputs never matter (all zero) gets ones.
    """
    mean = outputs.double().mean()
    if not mean > 0:
        return torch.ones_like(outputs, dtype=torch.float64)
    return ladder((outputs.double() + floor * mean).rsqrt())


def column_multiples(wanted: torch.Tensor, group: int, most: int, spread: float = 3.0) -> tuple[torch.Tensor, float]:
    """Small integers [in] proportional to the wanted steps, and the factor: wanted_k ≈ factor · multiple.

    Args:
        wanted: positive [in].
        group: consecutive columns that must share a multiple.
        most: the greatest multiple.
        spread: the typical multiple; 1 with equal steps gives ones.
    """
    shared = wanted.double().log().reshape(-1, group).mean(1).exp()
    centre = float(shared.log().mean().exp())
    factor = max(float(shared.min()), centre / spread, float(shared.max()) / most)
    if spread == 1.0:
        factor = centre
    multiples = (shared / factor).round().clamp(1, most).to(torch.int32)
    return multiples.repeat_interleave(group), factor


def coding_loss(wanted: torch.Tensor, choice: tuple[torch.Tensor, float], largest: torch.Tensor) -> float:
    """What `choice` loses against steps exactly as wanted, at equal bytes: log of arithmetic over geometric mean.

    Args:
        wanted: column steps [in].
        choice: multiples [in] and their factor.
        largest: for each row the least factor with which it fits the host [out]; rows that need more are raised.
    """
    multiples, factor = choice
    columns = (multiples * factor / wanted).log() * 2
    rows = (largest / factor).clamp_min(1.0).log() * 2
    arithmetic = columns.exp().mean().log() + rows.exp().mean().log()
    return float(arithmetic - columns.mean() - rows.mean())


def raised_steps(weights: torch.Tensor, lattice: Lattice, margins: torch.Tensor) -> tuple[float, float]:
    """How often the steps of groups beyond the host's reach are doubled, and what that costs.

    Args:
        weights: [out, in].
        lattice: steps and reach.
        margins: what feedback may add to a weight's magnitude, in steps [in].

    Returns:
        doublings a group on average, and bits a weight that unequal steps lose against equal ones at equal error.
    """
    factors = fitted(weights.abs() + margins * lattice.weight_steps, lattice).factors.double() / lattice.factors
    doublings = float(factors.log2().mean())
    return doublings, 0.5 * float(factors.square().mean().log2()) - doublings


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

    def chosen(self, rows: torch.Tensor) -> tuple[torch.Tensor, TrellisRounding]:
        """Numbers of `rows` (bool [rows]) and all rows that share lanes with them, and the rounding of those."""
        lanes = self.lanes.of_rows(rows)
        numbers = (rows | self.lanes.members(lanes, len(rows))).nonzero()[:, 0]
        rates = None if self.rates is None else self.rates.chosen(numbers)
        return numbers, TrellisRounding(self.code, self.lanes.renumbered(lanes, numbers), self.costs[numbers], rates)


@dataclass
class GridRounder:
    """A column rounder for `feedback_sweep`: integer multiples, the integers kept in `quants`.

    Attributes:
        lattice: where the values may lie.
        pull: rate-distortion: how far towards zero a value is pulled before rounding, in steps for each step of its
            magnitude (0 for none).
        paths: rounding by the paths of a trellis; the nearest integers where None.
        quants: int32 [out, in], filled column by column.
        overflow: bool [out, groups], where an integer lay beyond the host's reach.
    """

    lattice: Lattice
    pull: float = 0.0
    paths: TrellisRounding | None = None
    group: int = 1
    quants: torch.Tensor = field(init=False)
    overflow: torch.Tensor = field(init=False)
    _trellis: Trellis | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.paths is not None:
            self._trellis = Trellis(self.paths.code, self.paths.lanes, self.lattice.steps.device)
        rows, columns = len(self.lattice.steps), len(self.lattice.multiples)
        self.quants = torch.zeros(rows, columns, dtype=torch.int32, device=self.lattice.steps.device)
        self.overflow = torch.zeros_like(self.lattice.factors, dtype=torch.bool)

    def start_group(self, start: int, weights: torch.Tensor) -> None:
        """Nothing is prepared."""

    def round(self, column: int, values: torch.Tensor) -> torch.Tensor:
        """As `ColumnRounder.round`."""
        step = self.lattice.column_steps(column)
        scaled, most = values / step, int(self.lattice.limits[column])
        self.overflow[:, column // self.lattice.group] |= scaled.abs().round() > most
        if self._trellis is None or self.paths is None:
            integers = self.nearest(scaled).clamp(-most, most)
        else:
            costs = step.square() * self.paths.costs
            integers = self._trellis.nearest(scaled, column, most, costs / costs.mean(), partial(self._penalty, column))
        self.quants[:, column] = (integers * int(self.lattice.multiples[column])).to(torch.int32)
        return integers * step

    def _penalty(self, column: int, integers: torch.Tensor) -> torch.Tensor:
        """What integers [out, 4] cost beside their errors, in squared steps."""
        total = (2 * self.pull) * integers.abs().log1p()
        if self.paths is not None and self.paths.rates is not None:
            total += SLOPE * self.paths.rates.bits(column, integers)
        return total

    def nearest(self, scaled: torch.Tensor) -> torch.Tensor:
        """Integers [out], as floats, for values in steps [out]."""
        if not self.pull:
            return scaled.round()
        magnitude = scaled.abs()
        pulled = (magnitude - self.pull / (magnitude + 1.0)).clamp_min(0.0)
        return scaled.sign() * pulled.round()


def round_matrix(
    weights: torch.Tensor,
    factor: FeedbackFactor,
    lattice: Lattice,
    *,
    pull: float = 0.0,
    paths: TrellisRounding | None = None,
) -> Rounded:
    """Put `weights` [out, in] on `lattice`; groups that overflow the host get twice the step, or more.

    Does not modify its input.

    Args:
        weights: float32.
        factor: of the inputs' second moment.
        lattice: steps and multiples.
        pull: see `GridRounder`.
        paths: see `GridRounder`.

    Raises:
        NumericError: a group does not fit with the greatest factor of the host.
    """
    lattice = fitted(weights, lattice)
    result, overflow = _sweep(weights, factor, lattice, pull, paths)
    for _ in range(_RAISES):
        if not overflow.any():
            return result
        factors = result.lattice.factors * torch.where(overflow, 2, 1).to(torch.int32)
        lattice = replace(lattice, factors=factors.clamp_max(lattice.most_factor))
        again, part_paths = _swept_again(overflow.any(1), paths)
        part, part_overflow = _sweep(weights[again], factor, lattice.rows(again), pull, part_paths)
        quants = result.quants.clone()
        quants[again] = part.quants
        result = Rounded(lattice, quants, result.loss)
        overflow = torch.zeros_like(overflow)
        overflow[again] = part_overflow
    most = int(lattice.limits.max())
    raise NumericError(f"{int(overflow.any(1).sum())} rows do not fit into integers up to {most}: use a larger host")


def _swept_again(rows: torch.Tensor, paths: TrellisRounding | None) -> tuple[torch.Tensor, TrellisRounding | None]:
    """Numbers of the rows that a change of some `rows` (bool) concerns: of a trellis, all rows of their lanes."""
    return (rows.nonzero()[:, 0], None) if paths is None else paths.chosen(rows)


def fitted(weights: torch.Tensor, lattice: Lattice) -> Lattice:
    """Factors doubled where the weights themselves already lie beyond the limits."""
    reach = (lattice.multiples * lattice.limits).to(weights.dtype) * lattice.steps[:, None]
    needed = (weights.abs() / reach).reshape(len(weights), -1, lattice.group).amax(2) / lattice.factors
    doublings = needed.clamp_min(1.0).log2().ceil().to(torch.int32)
    factors = (lattice.factors << doublings).clamp_max(lattice.most_factor)
    return replace(lattice, factors=factors.to(torch.int32))


def _sweep(
    weights: torch.Tensor, factor: FeedbackFactor, lattice: Lattice, pull: float, paths: TrellisRounding | None
) -> tuple[Rounded, torch.Tensor]:
    rounder = GridRounder(lattice, pull, paths)
    loss = feedback_sweep(weights, factor, rounder).loss
    return Rounded(lattice, rounder.quants, loss), rounder.overflow
