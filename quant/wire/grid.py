"""The grid of integers that a matrix is put on: a step a row, a multiple a column.

The steps make every weight's rounding cost the model about the same, which is what an entropy coder wants: for the
curvature tr(G E H Eᵀ) an error in row r and column k costs G_rr / U_kk² after feedback (H⁻¹ = UᵀU), so at equal
bytes the least total cost has steps proportional to U_kk / √G_rr (reverse water-filling at high rate). One scalar
for the whole model then decides its size. Which integers the weights become is left to `rounding`, bytes and files to
`edgepack.packaging` and `export`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

LADDER = 4  # steps lie on a ladder of 2^(1/4): at most 9 % off, which costs 0.004 bit, and few values to store
_SMALLEST_STEP = 2.0**-14  # of normal float16
_ROOM = 1.5  # times its magnitude: what feedback may make of a weight beyond the host's reach
_LARGEST_STEP = 4094.0  # 16 times this is a float16: the minima of Q5_K


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


def fitted(weights: torch.Tensor, lattice: Lattice) -> Lattice:
    """Factors doubled where the weights themselves already lie beyond the limits.

    A row with a weight beyond even the greatest factor (single weights of trained models are a thousand times the
    others) gets a larger step: one row then costs more, where the whole matrix would not fit.
    """
    reach = (lattice.multiples * lattice.limits).to(weights.dtype) * lattice.steps[:, None]
    needed = (weights.abs() / reach).reshape(len(weights), -1, lattice.group).amax(2)
    over = (_ROOM * needed.amax(1) / lattice.most_factor).clamp_min(1.0).log2().ceil()
    grown = (lattice.steps * torch.exp2(over)).clamp_max(_LARGEST_STEP)
    needed = needed / lattice.factors * (lattice.steps / grown)[:, None]
    doublings = needed.clamp_min(1.0).log2().ceil().to(torch.int32)
    factors = (lattice.factors << doublings).clamp_max(lattice.most_factor)
    return replace(lattice, steps=torch.where(over > 0, grown, lattice.steps), factors=factors.to(torch.int32))
