"""Chooses the grid of the matrices that read one input: steps, multiples of columns, and whether a trellis pays.

Which integers the weights become is left to `quant.wire`, blocks and files to `wire`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml.host_grids import F16_STEP_BITS, Host
from edgepack.quant.wire.grid import PLAIN_ERROR, RUNGS, Lattice, column_multiples, fitted, grid_cost, half
from edgepack.quant.wire.rates import ERROR
from edgepack.trellis import trellis_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgepack.export.wire.rounding import WireSettings
    from edgepack.export.wire.stack import WireStack
    from edgepack.quant.wire.factor import SweepFactor
    from edgepack.trellis import TrellisCode

_SPREADS = (1.0, 1.5, 2.0, 3.0)  # typical multiples to choose from: larger ones follow U_kk better, but reach less far
_GROUPED_SPREADS = (2.0, 4.0, 8.0, 16.0)  # likewise where a host has integers for groups: finer, or more to raise
_MOST_MULTIPLE = 8  # of a column's step where it cannot be folded
_LEAST_REACH = 3  # of a trellis: every subset then has an integer
_MARGIN = 1.0  # standard deviations of what feedback adds, which must fit the host too
_TRELLIS_GAIN = 0.15  # bits a weight, of eight states and paths of 128 rows
_SAMPLE = 96  # rows on which grids are compared
_STEP_BITS = 7  # significant bits of steps whose products with a factor of four must be float16
UNION_STEP = 0.5625  # of a plain grid's step: eight states then have the plain grid's error (tools/trellis_gain.py)


@dataclass(frozen=True)
class WireGrid:
    """How the matrices of one input group are put on integers.

    Attributes:
        host: the container.
        code: of the trellis, or None.
        step: what a row's relative step is multiplied with.
        multiples: int32 [in].
    """

    host: Host
    code: TrellisCode | None
    step: float
    multiples: torch.Tensor

    @property
    def typical_step(self) -> float:
        """Geometric mean over columns."""
        return self.step * float(self.multiples.double().log().mean().exp())

    def lattice(self, relative: torch.Tensor) -> Lattice:
        """For rows with relative steps [rows]; a host with multiples of its own holds them as factors."""
        host, device, rows = self.host, relative.device, len(relative)
        wanted, multiples = (relative * self.step).float(), self.multiples.to(device)
        if host.grouped:
            factors, ones = multiples[:: host.group].expand(rows, -1), torch.ones_like(multiples)
            return Lattice(half(wanted), factors, ones, ones * host.reach, host.max_multiple, RUNGS)
        whole = torch.ones(rows, len(multiples) // host.group, dtype=torch.int32, device=device)
        limits = host.reach // multiples
        if host.kind is GGMLType.F16:
            return Lattice(half(wanted, F16_STEP_BITS), whole, multiples, limits, host.max_multiple)
        return Lattice(half(wanted, _STEP_BITS) / RUNGS, whole * RUNGS, multiples, limits, host.max_multiple, RUNGS)


class GridChooser:
    """Chooses grids.

    Args:
        settings: of the export.
    """

    def __init__(self, settings: WireSettings) -> None:
        self.settings = settings
        self.pays_for: dict[str, int] = {}  # of the first member of a stack: whether it has a trellis
        self.kept = False

    def keep(self, kept: bool) -> None:
        """Whether to leave what has been decided on trellises as it is: else sizes jump between two near scales."""
        self.kept = kept

    def choose(self, stack: WireStack, host: Host, factor: SweepFactor, scale: float) -> WireGrid:
        """Steps and multiples, and whether a trellis gains more than its smaller steps lose to the host's reach.

        Args:
            stack: the matrices.
            host: their container.
            factor: of the inputs, folds included.
            scale: what relative steps are multiplied with on a plain grid.
        """
        plain, paths = self._grids(stack, host, factor, scale)
        if paths is None:
            return plain[1]
        name = stack.members[0].info.name
        if not self.kept or name not in self.pays_for:
            self.pays_for[name] = int(paths[0] < plain[0])
        return (paths if self.pays_for[name] else plain)[1]

    def cost(self, sample: GridSample, host: Host, scale: float) -> float:
        """What the better grid costs a weight, where the wanted steps on a plain grid cost 1 (`grid_cost`)."""
        code, most = self._code(host, sample.weights.shape[1]), slice(0, 2)
        found = self._grid_of(sample, WireGrid(host, None, scale, torch.empty(0)), most)[0]
        if code is None:
            return found
        paths = self._grid_of(sample, WireGrid(host, code, scale * UNION_STEP, torch.empty(0)), most)[0]
        return min(found, paths - 2 * math.log(2) * _TRELLIS_GAIN)

    def _grids(
        self, stack: WireStack, host: Host, factor: SweepFactor, scale: float
    ) -> tuple[tuple[float, WireGrid], tuple[float, WireGrid] | None]:
        """The best plain grid and the best with a trellis, or None, and what they cost."""
        sample = GridSample.of(stack, factor, _SAMPLE)
        plain = self._grid_of(sample, WireGrid(host, None, scale, torch.empty(0)))
        code = self._code(host, stack.width)
        if code is None or (stack.experts > 1 and stack.rows // stack.experts % code.rows):
            return plain, None  # no path may cross from one expert to the next
        cost, paths = self._grid_of(sample, WireGrid(host, code, scale * UNION_STEP, torch.empty(0)))
        return plain, (cost - 2 * math.log(2) * _TRELLIS_GAIN, paths)

    def _grid_of(
        self, sample: GridSample, grid: WireGrid, some: slice = slice(None)
    ) -> tuple[float, WireGrid]:  # fmt: skip
        """The multiples that cost least on a sample of rows, and what they cost (`grid_cost`)."""
        found = []
        for spread in self._spreads(grid.host)[some]:
            multiples, base = self._multiples(sample.wanted, grid.host, grid.code, spread)
            candidate = replace(grid, step=grid.step * base, multiples=multiples)
            found.append((sample.cost(candidate, grid.step), candidate))
        return min(found, key=lambda pair: pair[0])

    def _spreads(self, host: Host) -> tuple[float, ...]:
        if host.grouped:
            return _GROUPED_SPREADS
        return _SPREADS if self.settings.column_steps else _SPREADS[:1]

    def _code(self, host: Host, width: int) -> TrellisCode | None:
        """The trellis of a matrix of `width` columns; None without one, or where the host cannot hold its integers."""
        if not self.settings.trellis or host.reach < _LEAST_REACH:
            return None
        return trellis_of(self.settings.trellis, host.kind.row_bytes(width))

    def _multiples(
        self, wanted: torch.Tensor, host: Host, code: TrellisCode | None, spread: float
    ) -> tuple[torch.Tensor, float]:
        """Multiples of the columns, typically `spread`, and the factor of all steps.

        Args:
            wanted: column steps, float64 [in].
            host: with a multiple a column (a coarser column then has fewer integers), or one a group.
            code: of the trellis, which needs integers of either sign in each subset.
            spread: typical multiple.
        """
        if not self.settings.column_steps:
            wanted = torch.full_like(wanted, float(wanted.log().mean().exp()))
        if host.grouped:
            return column_multiples(wanted, host.group, host.max_multiple, spread)
        most = min(_MOST_MULTIPLE, host.reach // _LEAST_REACH) if code else min(_MOST_MULTIPLE, host.reach)
        return column_multiples(wanted, 1, most, spread)


@dataclass(frozen=True)
class GridSample:
    """Rows on which grids are compared.

    Attributes:
        weights: float32 [n, in].
        relative: their relative steps, float64 [n].
        wanted: column steps, float64 [in].
        spread: what feedback adds, over the root mean square of an error, float32 [in].
    """

    weights: torch.Tensor
    relative: torch.Tensor
    wanted: torch.Tensor
    spread: torch.Tensor

    @classmethod
    def of(cls, stack: WireStack, factor: SweepFactor, most: int) -> GridSample:
        """At most so many rows of a stack, and the factor of its inputs."""
        weights, relative = stack.sample()
        some = torch.linspace(0, len(weights) - 1, min(len(weights), most)).round().long()
        wanted, spread = torch.from_numpy(factor.diagonal).double(), torch.from_numpy(factor.noise).sqrt()
        return cls(weights[some], relative[some], wanted, spread)

    def folded(self, scales: NDArray[np.float64]) -> GridSample:
        """With columns divided by `scales` [in]."""
        divisors = torch.from_numpy(scales)
        return replace(self, weights=(self.weights / divisors).float(), wanted=self.wanted / divisors)

    def cost(self, grid: WireGrid, scale: float) -> float:
        """Of a grid, where relative steps are multiplied with `scale`, which the columns' ratios are not in."""
        lattice, rounding = grid.lattice(self.relative), PLAIN_ERROR if grid.code is None else ERROR
        wanted = self.relative[:, None] * scale * self.wanted
        noise = _MARGIN * self.spread * rounding**0.5 * lattice.weight_steps
        lattice = fitted(self.weights, lattice)
        return grid_cost(self.weights.abs() + noise, lattice, wanted, rounding)
