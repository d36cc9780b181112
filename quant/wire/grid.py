"""The grid of integers that a matrix is put on: a step a row, a multiple a column.

The steps make every weight's rounding cost the model about the same, which is what an entropy coder wants: for the
curvature tr(G E H Eᵀ) an error in row r and column k costs G_rr / U_kk² after feedback (H⁻¹ = UᵀU), so at equal
bytes the least total cost has steps proportional to U_kk / √G_rr (reverse water-filling at high rate). One scalar
for the whole model then decides its size. Which integers the weights become is left to `rounding`, bytes and files to
`edgepack.packaging` and `export`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

PLAIN_ERROR = 1 / 12  # mean squared error of the nearest integers, in steps
RUNGS = 8  # of a group's factor in an octave, where the host can hold them
LADDER = 4  # steps lie on a ladder of 2^(1/4): at most 9 % off, which costs 0.004 bit, and few values to store
_SMALLEST_STEP = 2.0**-14  # of normal float16
_ROOM = 1.5  # times its magnitude: what feedback may make of a weight beyond the host's reach
_LARGEST_STEP = 2046.0  # 32 times this, the lowest integer of Q6_K, is a float16


@dataclass(frozen=True)
class Lattice:
    """Where the weights of a matrix may lie: step · factor · multiple · integer.

    Attributes:
        steps: float32 [out], the row's step; with a factor, or by itself where blocks hold the factors, a float16.
        factors: int32 [out, groups], what the host multiplies a group's step with.
        multiples: int32 [in], multiples that the integers of a column are held to.
        limits: int32 [in], the greatest magnitude that the column's integer may have, before its multiple.
        most_factor: the greatest factor that the host can hold.
        rungs: factors that a group may have in an octave, where its own leaves integers beyond their limits: 1 for
            powers of two, `RUNGS` for 8, 9 … 16, 18 ….
    """

    steps: torch.Tensor
    factors: torch.Tensor
    multiples: torch.Tensor
    limits: torch.Tensor
    most_factor: int
    rungs: int = 1

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


def next_factors(factors: torch.Tensor, lattice: Lattice) -> torch.Tensor:
    """The next rung of each factor's ladder; the greatest stays."""
    octave = (factors.double() / lattice.rungs).log2().floor().clamp_min(0)
    return (factors + torch.exp2(octave).to(factors.dtype)).clamp_max(lattice.most_factor)


def best_factors(values: torch.Tensor, lattice: Lattice, rounding: float, columns: slice = slice(None)) -> torch.Tensor:
    """Factors that cost least of those that are not below the lattice's: the formula of kernels/wire_sweep.h.

    Args:
        values: what is about to be rounded in some columns [out, columns].
        lattice: of all columns; its factors are those asked for.
        rounding: mean squared error of a weight, in squared steps.
        columns: whole groups.

    Returns:
        int32 [out, groups of these columns].
    """
    group, all_columns = lattice.group, len(lattice.multiples)
    start, stop, _ = columns.indices(all_columns)
    asked = lattice.factors[:, start // group : stop // group].contiguous()
    unit = (lattice.steps[:, None] * asked).repeat_interleave(group, 1) * lattice.multiples[columns]
    sizes, limits = values.abs() / unit, lattice.limits[columns].to(values.dtype)
    needed = (sizes / limits).reshape(*asked.shape, group).amax(2)
    found = asked.reshape(-1).clone()
    open_groups = (needed.reshape(-1) > 1).nonzero()[:, 0]
    if not len(open_groups):
        return asked
    sizes = sizes.reshape(-1, group)[open_groups]
    limits = limits.reshape(-1, group).repeat(len(asked), 1)[open_groups]
    needed, first = needed.reshape(-1)[open_groups], found[open_groups]
    factor, least = first.clone(), torch.full_like(needed, math.inf)
    while len(open_groups):
        ratio = factor / first
        cost = rounding * group * (ratio.square() - 2 * (factor.double().log() - first.double().log()).float())
        cost = cost + (sizes - ratio[:, None] * limits).clamp_min(0).square().sum(1)
        better = cost < least
        found[open_groups[better]] = factor[better]
        least, following = torch.minimum(least, cost), next_factors(factor, lattice)
        rest = (ratio < needed) & (following != factor)
        open_groups, sizes, limits, needed = open_groups[rest], sizes[rest], limits[rest], needed[rest]
        first, least, factor = first[rest], least[rest], following[rest]
    return found.reshape(asked.shape)


def grid_cost(values: torch.Tensor, lattice: Lattice, wanted: torch.Tensor, rounding: float) -> float:
    """What a grid costs beside one with exactly the wanted steps: squared errors, less what larger steps save in bits.

    With x a weight's step over the wanted one it is the mean of x² - 2 ln x, which is 1 at best; a bit a weight is
    2 ln 2. What lies beyond the limits adds its squared error over that of a rounding at the wanted step.

    Args:
        values: a sample of rows, magnitudes with what feedback may add [n, in].
        lattice: of these rows.
        wanted: steps [n, in].
        rounding: mean squared error of a weight, in squared steps.
    """
    factors = best_factors(values, lattice, rounding)
    steps = replace(lattice, factors=factors).weight_steps.double()
    over = steps / wanted
    clamped = (values.abs().double() - steps * lattice.limits).clamp_min(0) / wanted
    return float((over.square() - 2 * over.log() + clamped.square() / rounding).mean())


def fitted(weights: torch.Tensor, lattice: Lattice) -> Lattice:
    """Steps doubled in rows with a weight that even the greatest factor could not hold.

    Single weights of trained models are a thousand times the others: one row then costs more, where the whole matrix
    would not fit. Groups' factors are raised while they are rounded.
    """
    reach = (lattice.multiples * lattice.limits).to(weights.dtype) * lattice.steps[:, None]
    needed = (weights.abs() / reach).amax(1)
    over = (_ROOM * needed / lattice.most_factor).clamp_min(1.0).log2().ceil()
    grown = (lattice.steps * torch.exp2(over)).clamp_max(_LARGEST_STEP)
    return replace(lattice, steps=torch.where(over > 0, grown, lattice.steps))
