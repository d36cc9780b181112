"""Which weights of one matrix go: by magnitude, by Wanda's score, or by SparseGPT with error feedback.

Pure functions on one matrix; the walk over a model is left to `weights`.
Sources: Wanda, Sun et al. (arXiv 2306.11695); SparseGPT, Frantar and Alistarh (arXiv 2301.00774).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from edgepack.quant.feedback import feedback_factor, feedback_sweep

if TYPE_CHECKING:
    from edgepack.quant.feedback import FeedbackFactor

SPARSEGPT_BLOCK = 128  # columns that share one threshold, as the paper has it


@dataclass(frozen=True)
class Pattern:
    """How many weights go, and in what arrangement.

    Attributes:
        sparsity: the share of weights that become zero, 0 (included) to 1 (not included).
        group: 0 for any arrangement; otherwise, in every `group` consecutive weights of a row, the share goes:
            2:4 is sparsity 0.5 in groups of 4.
        compare: which scores compete where there is no group: those of one output row, or of the whole matrix.
            `weights.comparison` chooses where nobody says.
    """

    sparsity: float
    group: int = 0
    compare: Literal["row", "layer"] = "row"

    @property
    def zeros_in_group(self) -> int:
        """How many of `group` weights go."""
        return round(self.sparsity * self.group)


def grouped_mask(scores: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """True for the weights that go: the least scores in every group of every row; a short last group keeps its own.

    Args:
        scores: [out, in].
        pattern: with `group` > 0.
    """
    out, columns = scores.shape
    whole = columns // pattern.group * pattern.group
    groups = scores[:, :whole].reshape(out, -1, pattern.group)
    least = groups.argsort(dim=2, stable=True)[..., : pattern.zeros_in_group]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, least, True).reshape(out, whole)
    return torch.nn.functional.pad(mask, (0, columns - whole))


def least_mask(scores: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """True for the weights [out, in] that go: the least ⌊sparsity · n⌋ of n competing scores, or of each group.

    Of equal scores the first go.
    """
    if pattern.group:
        return grouped_mask(scores, pattern)
    competing = scores if pattern.compare == "row" else scores.reshape(1, -1)
    return _first_least(competing, int(pattern.sparsity * competing.shape[1])).reshape(scores.shape)


def _first_least(scores: torch.Tensor, count: int) -> torch.Tensor:
    """True for the least `count` of each row [rows, n], of equal ones the first: selected, nothing is sorted."""
    if not count:
        return torch.zeros_like(scores, dtype=torch.bool)
    bound = scores.kthvalue(count, dim=1, keepdim=True).values
    mask = scores < bound
    rows, columns = (scores == bound).nonzero(as_tuple=True)
    first = torch.searchsorted(rows, torch.arange(len(scores), device=rows.device))
    place = torch.arange(len(rows), device=rows.device) - first[rows]  # among those of its row that equal the bound
    goes = place < (count - mask.sum(1))[rows]
    mask[rows[goes], columns[goes]] = True
    return mask


def magnitude_mask(weight: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """True for the weights [out, in] that go: the least |w|."""
    return least_mask(weight.abs(), pattern)


def wanda_mask(weight: torch.Tensor, mean_square: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """True for the weights [out, in] that go: the least |w|·‖x‖₂.

    Args:
        weight: [out, in].
        mean_square: E[x²] of the inputs [in]; its square root is ‖x‖₂ but for a constant factor.
        pattern: what goes.
    """
    return least_mask(weight.abs() * mean_square.sqrt(), pattern)


class SparseGptRounder:
    """Rounds the least important weights to zero, by w²/[H⁻¹]²_jj over blocks of columns."""

    def __init__(self, factor: FeedbackFactor, pattern: Pattern) -> None:
        self.group = pattern.group or SPARSEGPT_BLOCK
        self._pattern = replace(pattern, compare="layer")  # within a block of columns, as the paper has it
        self._diagonal = factor.diagonal
        self._start = 0
        self._mask = torch.empty(0)

    def start_group(self, start: int, weights: torch.Tensor) -> None:
        """Choose what goes in the columns from `start`."""
        scores = (weights / self._diagonal[start : start + weights.shape[1]]).square()
        self._start = start
        self._mask = least_mask(scores, self._pattern)

    def round(self, column: int, values: torch.Tensor) -> torch.Tensor:
        """`values` with the weights that go set to zero."""
        return values.masked_fill(self._mask[:, column - self._start], 0.0)


def sparsegpt(
    weight: torch.Tensor, hessian: torch.Tensor, pattern: Pattern, name: str
) -> tuple[torch.Tensor, FeedbackFactor]:
    """Prune with error feedback: the weights that stay make good for those that go.

    Args:
        weight: [out, in]; not modified.
        hessian: XᵀX / tokens [in, in].
        pattern: what goes.
        name: of the layer, for messages.

    Returns:
        (the pruned weight [out, in], the factor of the Hessian, which tells the damping that it needed). Weights of
        channels that were never active are zero, whatever the pattern says.
    """
    factor = feedback_factor(hessian, name=name)
    alive = weight.masked_fill(factor.dead, 0.0)
    return feedback_sweep(alive, factor, SparseGptRounder(factor, pattern)).weights, factor
