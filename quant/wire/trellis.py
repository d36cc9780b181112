"""Trellis-coded rounding of a column in torch, for devices that the kernel does not know: all lanes at once.

The cheapest path along the rows of each lane, by the Viterbi algorithm (`tools/trellis_gain.py` prints what short lanes
lose). How errors are fed to later columns is `torch_sweep`'s, how a path is coded `edgepack.packaging`'s.

Source: A. J. Viterbi, IEEE Trans. IT-13 (1967); M. W. Marcellin and T. R. Fischer, Trellis coded quantization of
memoryless and Gauss-Markov sources, IEEE Trans. COM-38 (1990).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.quant.wire.lanes import Lanes
    from edgepack.trellis import TrellisCode

_UNREACHABLE = 1e30
_PIECE = 16  # rows that are compiled as one: kernels of a GPU this small cost what starting them costs


def _advance(branches: torch.Tensor, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Follow lanes over some rows.

    Args:
        branches: costs of the steps from each state, [rows, lanes, 2, states / 2, 2].
        total: of the states before the first row, [lanes, states].

    Returns:
        of the states after the last row [lanes, states]; whether each was entered from the upper half of the states,
        bool [rows, lanes, states].
    """
    survivors = []
    for branch in branches.unbind():
        reached = branch + total.view(len(total), 2, -1, 1)
        survivors.append((reached[:, 1] < reached[:, 0]).flatten(1))
        total = reached.amin(1).flatten(1)
    return total, torch.stack(survivors)


def _trace_back(origins: torch.Tensor, reached: torch.Tensor) -> torch.Tensor:
    """States after each row [rows, lanes] of the paths that end in `reached` [lanes], and before the first of them.

    Args:
        origins: int64 [rows, lanes, states], the state before each row of who survived in a state after it.
        reached: int64 [lanes].

    Returns:
        int64 [rows + 1, lanes], the state before the first row first.
    """
    path = [reached[:, None]]
    for origin in origins.unbind()[::-1]:
        path.append(origin.gather(1, path[-1]))
    return torch.cat(path[::-1], 1).T


@cache
def compiled() -> tuple[Callable[..., tuple[torch.Tensor, torch.Tensor]], Callable[..., torch.Tensor]]:
    """`_advance` and `_trace_back` as torch compiles them; shapes are those of whole pieces, lanes and states vary."""
    return torch.compile(_advance, fullgraph=True), torch.compile(_trace_back, fullgraph=True)


class Trellis:
    """Finds paths of one code on one device.

    Args:
        code: the code.
        lanes: of the rows.
        device: of the values.
        compiling: whether the steps along a lane are compiled by torch; by default on every device but the CPU, where
            only tests come here.
    """

    def __init__(self, code: TrellisCode, lanes: Lanes, device: torch.device, compiling: bool | None = None) -> None:
        self.code, self.lanes = code, lanes
        compiling = device.type != "cpu" if compiling is None else compiling
        self._advance, self._trace_back = compiled() if compiling else (_advance, _trace_back)
        self._half = code.states // 2
        quantisers, taps = torch.tensor(code.quantisers), torch.tensor(code.taps)
        self._quantisers, self._taps = quantisers.to(device), taps.to(device)
        self._classes = torch.arange(4, dtype=torch.float32, device=device)
        # Subset of the step from state top · half + low with step u, [top, low, u]; it leads to state 2 · low + u.
        steps = torch.arange(2)[None, :] ^ taps[:, None]
        self._subsets = (2 * steps + quantisers[:, None]).reshape(2, self._half, 2).reshape(-1).to(device)

    def nearest(
        self,
        values: torch.Tensor,
        column: int,
        most: int,
        weights: torch.Tensor | None = None,
        penalty: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The integers of the cheapest path; rows in no lane stand aside and get the cheapest even ones.

        Args:
            values: [rows], in steps of the union grid.
            column: its number, which says where paths begin.
            most: the greatest magnitude of an integer, at least 3.
            weights: what a squared error costs in each row [rows]; equal where None.
            penalty: what integers cost beside their errors, [rows, 4] of each subset's candidates to the same shape.

        Returns:
            integers [rows], as floats.
        """
        lanes = self.lanes
        candidates = self._candidates(values, most)
        costs = (values[:, None] - candidates).square_()
        if weights is not None:
            costs *= weights[:, None]
        if penalty is not None:
            costs += penalty(candidates)
        result = torch.where(costs[:, 2] < costs[:, 0], candidates[:, 2], candidates[:, 0])
        if lanes.rows.numel():
            subsets = self._path(costs[lanes.rows] * lanes.real[..., None], column % self.code.states)
            rows = lanes.rows[lanes.real]
            result[rows] = candidates[rows, subsets[lanes.real]]
        return result

    def _candidates(self, values: torch.Tensor, most: int) -> torch.Tensor:
        """The nearest integer within ±most of each subset [rows, 4]: of those that are 0, 1, 2 and 3 modulo 4."""
        values = values.clamp(-most, most)
        found = ((values[:, None] - self._classes) / 4).round() * 4 + self._classes
        return found - 4 * found.sign() * (found.abs() > most)

    def _path(self, costs: torch.Tensor, start: int) -> torch.Tensor:
        """Subset of each position on the cheapest path from a state, int64 [length, lanes].

        Args:
            costs: of the subsets, [length, lanes, 4].
            start: the state.
        """
        length, lanes, _ = costs.shape
        costs = torch.cat([costs, costs.new_zeros(-length % _PIECE, lanes, 4)])  # behind the end every path is as good
        branches = costs.index_select(2, self._subsets).reshape(-1, lanes, 2, self._half, 2)
        total, survivors = costs.new_full((lanes, self.code.states), _UNREACHABLE), []
        total[:, start] = 0.0
        for piece in branches.split(_PIECE):
            total, better = self._advance(piece, total)
            survivors.append(better)
        states = self._traced(total.argmin(1), survivors)[: length + 1]
        before, after = states[:-1], states[1:]
        return ((after & 1) ^ self._taps[before]) * 2 + self._quantisers[before]

    def _traced(self, reached: torch.Tensor, survivors: list[torch.Tensor]) -> torch.Tensor:
        """States on the paths that end in `reached` [lanes], int64 [length + 1, lanes], the first before any row."""
        states, pieces = torch.arange(self.code.states, device=reached.device), []
        for better in reversed(survivors):
            path = self._trace_back((states >> 1) + self._half * better, reached)
            pieces.append(path[1:])
            reached = path[0]
        return torch.cat([reached[None], *reversed(pieces)])
