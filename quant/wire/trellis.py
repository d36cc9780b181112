"""Trellis-coded rounding of a column: the cheapest path along its rows, by the Viterbi algorithm, many lanes at once.

A column is cut into lanes of `TrellisCode.rows` rows with paths of their own, so that all lanes of a column advance
together (`tools/trellis_gain.py` prints what short lanes lose). How errors are fed to later columns is
`quant.feedback`'s, how a path is coded `edgepack.packaging`'s.

Source: A. J. Viterbi, IEEE Trans. IT-13 (1967); M. W. Marcellin and T. R. Fischer, Trellis coded quantization of
memoryless and Gauss-Markov sources, IEEE Trans. COM-38 (1990).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgepack.trellis import TrellisCode

_UNREACHABLE = 1e30


@dataclass(frozen=True)
class Lanes:
    """Rows of stacked matrices cut into lanes; no lane crosses from one matrix to the next.

    Attributes:
        rows: int64 [length, lanes], row of each position; any row behind a lane's end.
        real: bool [length, lanes], False behind a lane's end.
    """

    rows: torch.Tensor
    real: torch.Tensor

    @classmethod
    def cut(cls, heights: Sequence[int], length: int, aside: torch.Tensor) -> Lanes:
        """The lanes of matrices of so many rows; rows `aside` (bool [rows]) are in none.

        Each is the rest of at most `length` consecutive rows of a matrix, counted from the matrix' first.
        """
        windows, first = [], 0
        for height in heights:
            windows.append(first + torch.arange(height, device=aside.device) // length)
            first += -(-height // length)
        return cls._of(torch.cat(windows), (~aside).nonzero()[:, 0])

    @classmethod
    def _of(cls, windows: torch.Tensor, kept: torch.Tensor) -> Lanes:
        """Lanes of the rows `kept` (numbers, increasing), one for each of `windows` [all rows] that has any."""
        _, lane, sizes = windows[kept].unique_consecutive(return_inverse=True, return_counts=True)
        position = torch.arange(len(kept), device=kept.device) - (sizes.cumsum(0) - sizes)[lane]
        longest = int(sizes.max()) if len(sizes) else 0
        rows = torch.zeros(longest, len(sizes), dtype=torch.int64, device=kept.device)
        real = torch.zeros_like(rows, dtype=torch.bool)
        rows[position, lane], real[position, lane] = kept, True
        return cls(rows, real)

    def of_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Which lanes hold any of some rows: bool [rows] → bool [lanes]."""
        return (rows[self.rows] & self.real).any(0)

    def members(self, lanes: torch.Tensor, rows: int) -> torch.Tensor:
        """Which of `rows` rows are in some lanes (bool [lanes]): bool [rows]."""
        found = torch.zeros(rows, dtype=torch.bool, device=lanes.device)
        found[self.rows[:, lanes][self.real[:, lanes]]] = True
        return found

    def renumbered(self, lanes: torch.Tensor, numbers: torch.Tensor) -> Lanes:
        """Some lanes over rows `numbers` (increasing), which then count from 0."""
        rows, real = self.rows[:, lanes], self.real[:, lanes]
        return Lanes(torch.searchsorted(numbers, rows).clamp_max(max(0, len(numbers) - 1)) * real, real)


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
