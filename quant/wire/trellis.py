"""Trellis-coded rounding of a column in torch, for devices that the kernel does not know: all lanes at once.

The cheapest path along the rows of each lane, by the Viterbi algorithm (`tools/trellis_gain.py` prints what short lanes
lose). How errors are fed to later columns is `torch_sweep`'s, how a path is coded `edgepack.packaging`'s.

Source: A. J. Viterbi, IEEE Trans. IT-13 (1967); M. W. Marcellin and T. R. Fischer, Trellis coded quantization of
memoryless and Gauss-Markov sources, IEEE Trans. COM-38 (1990).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.quant.wire.lanes import Lanes
    from edgepack.trellis import TrellisCode

_UNREACHABLE = 1e30


class Trellis:
    """Finds paths of one code on one device.

    Args:
        code: the code.
        lanes: of the rows.
        device: of the values.
    """

    def __init__(self, code: TrellisCode, lanes: Lanes, device: torch.device) -> None:
        self.code, self.lanes = code, lanes
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
        branches = costs.index_select(2, self._subsets).reshape(length, lanes, 2, self._half, 2)
        total = costs.new_full((lanes, self.code.states), _UNREACHABLE)
        total[:, start] = 0.0
        for branch in branches:  # two small operations a row: what they cost to call is what a sweep costs
            branch += total.view(lanes, 2, self._half, 1)
            total = branch.amin(1)
        better = (branches[:, :, 1] < branches[:, :, 0]).reshape(length, lanes, -1)
        return self._trace(total.view(lanes, -1).argmin(1), better, start)

    def _trace(self, last: torch.Tensor, better: torch.Tensor, start: int) -> torch.Tensor:
        """Follow the survivors back from the cheapest last states [lanes].

        Args:
            last: int64 [lanes].
            better: bool [length, lanes, states], whether a state is entered from the upper half of the states.
            start: the state before the first step.
        """
        states = torch.arange(self.code.states, device=last.device)
        origins = (states >> 1) + self._half * better
        path, reached = [], last[:, None]
        for origin in origins.flip(0):
            path.append(reached)
            reached = origin.gather(1, reached)
        after = torch.stack(path[::-1])[..., 0]
        before = torch.cat([torch.full_like(after[:1], start), after[:-1]])
        return ((after & 1) ^ self._taps[before]) * 2 + self._quantisers[before]
