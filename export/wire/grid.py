"""Chooses the grid of the matrices that read one input: steps, multiples of columns, and whether a trellis pays.

Which integers the weights become is left to `quant.wire`, blocks and files to `wire`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml.host_grids import F16_STEP_BITS, Host
from edgepack.quant.wire.grid import Lattice, coding_loss, column_multiples, half, raised_steps
from edgepack.quant.wire.rates import ERROR
from edgepack.trellis import trellis_of

if TYPE_CHECKING:
    from edgepack.export.wire.rounding import WireSettings
    from edgepack.export.wire.stack import WireStack
    from edgepack.quant.wire.factor import SweepFactor
    from edgepack.trellis import TrellisCode

_FITTING = 0.998  # of a column's weights must fit the host with the column's own step
_SPREADS = (1.0, 1.5, 2.0, 3.0)  # typical multiples to choose from: larger ones follow U_kk better, but reach less far
_MOST_MULTIPLE = 8  # of a column's step where it cannot be folded
_LEAST_REACH = 3  # of a trellis: every subset then has an integer
_MOST_DOUBLINGS = 0.5  # a group on average: beyond, the host's reach and not the step decides the error
_MARGIN = 2.0  # standard deviations of what feedback adds, which must fit the host too
_GROUPED_GAIN = 0.03  # all that unequal steps may lose in hosts of few integers: more was measured to cost all the gain
_NARROWER = 0.65  # of a plain grid's steps; multiples that had to grow to fit the host take the trellis' room
_TRELLIS_GAIN = 0.15  # bits a weight, of eight states and paths of 128 rows
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
        bits = F16_STEP_BITS if host.kind is GGMLType.F16 else 11
        steps, multiples = half((relative * self.step).float(), bits), self.multiples.to(device)
        if host.grouped:
            factors, ones = multiples[:: host.group].expand(rows, -1), torch.ones_like(multiples)
            return Lattice(steps, factors, ones, ones * host.reach, host.max_multiple)
        factors = torch.ones(rows, len(multiples) // host.group, dtype=torch.int32, device=device)
        return Lattice(steps, factors, multiples, host.reach // multiples, host.max_multiple)


class GridChooser:
    """Chooses grids.

    Args:
        settings: of the export.
    """

    def __init__(self, settings: WireSettings) -> None:
        self.settings = settings
        self.pays_for: dict[str, bool] = {}  # first member of a stack → what was decided last
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
        weights, relative = stack.sample()
        wanted = torch.from_numpy(factor.diagonal).double()
        plain = self._grid_of(weights, relative, wanted, WireGrid(host, None, scale, torch.empty(0)))
        code = self._code(host, stack.width)
        if code is None or (stack.experts > 1 and stack.rows // stack.experts % code.rows):
            return plain  # no path may cross from one expert to the next
        paths = self._grid_of(weights, relative, wanted, WireGrid(host, code, scale * UNION_STEP, torch.empty(0)))
        name = stack.members[0].info.name
        if not self.kept or name not in self.pays_for:
            spread = torch.from_numpy(factor.noise).sqrt()
            self.pays_for[name] = self._pays(paths, plain, weights, relative, spread)
        return paths if self.pays_for[name] else plain

    def _pays(
        self, paths: WireGrid, plain: WireGrid, weights: torch.Tensor, relative: torch.Tensor, spread: torch.Tensor
    ) -> bool:
        """Whether a trellis' smaller steps stay small in this host.

        Args:
            paths: with a trellis.
            plain: without.
            weights: a sample of rows [n, in].
            relative: their relative steps [n].
            spread: what feedback adds, over the root mean square of an error [in].
        """
        doublings, lost = raised_steps(weights, paths.lattice(relative), _MARGIN * spread * ERROR**0.5)
        lost -= raised_steps(weights, plain.lattice(relative), _MARGIN * spread / 12**0.5)[1]
        gain = _GROUPED_GAIN if paths.host.grouped else _TRELLIS_GAIN
        narrower = paths.typical_step / plain.typical_step < _NARROWER
        return narrower and lost < gain and doublings < _MOST_DOUBLINGS

    def _grid_of(self, weights: torch.Tensor, relative: torch.Tensor, wanted: torch.Tensor, grid: WireGrid) -> WireGrid:
        """With multiples chosen by a sample of rows."""
        steps = (relative * grid.step)[:, None]
        multiples, base = self._multiples(wanted, weights / steps, grid.host, grid.code)
        return replace(grid, step=grid.step * base, multiples=multiples)

    def _code(self, host: Host, width: int) -> TrellisCode | None:
        """The trellis of a matrix of `width` columns; None without one, or where the host cannot hold its integers."""
        if not self.settings.trellis or host.reach < _LEAST_REACH:
            return None
        return trellis_of(self.settings.trellis, host.kind.row_bytes(width))

    def _multiples(
        self, wanted: torch.Tensor, relative: torch.Tensor, host: Host, code: TrellisCode | None
    ) -> tuple[torch.Tensor, float]:
        """Multiples of the columns and the factor of all steps, so that nearly all rows fit the host.

        Args:
            wanted: column steps, float64 [in].
            relative: weights over their rows' relative steps [out, in].
            host: with a multiple a column (a coarser column then has fewer integers), or one a group.
            code: of the trellis, which needs integers of either sign in each subset.
        """
        if not self.settings.column_steps:
            wanted = torch.full_like(wanted, float(wanted.log().mean().exp()))
        magnitude = relative.abs()
        if host.grouped:
            least = torch.quantile(magnitude / host.reach, _FITTING, dim=0)
            return column_multiples(torch.maximum(wanted, least), host.group, min(_MOST_MULTIPLE, host.max_multiple))
        most = min(_MOST_MULTIPLE, host.reach // _LEAST_REACH) if code else _MOST_MULTIPLE
        choices = [column_multiples(wanted, 1, most, spread) for spread in _SPREADS]
        largest = magnitude.reshape(len(magnitude), -1, host.group).amax(2).double().reshape(-1) / host.reach
        return min(choices, key=lambda choice: coding_loss(wanted, choice, largest))
