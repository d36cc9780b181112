"""Searches a fold's scales: those with which the block loses least when its weights are rounded for the file.

One block at a time; the walk over the model is left to `weights`. Source: AWQ, Lin et al. (arXiv 2306.00978).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from edgepack.quant.passes.awq.folding import HeadCounts, gather_heads, spread_over_heads

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgepack.quant.calibration.statistics import LinearStatistics
    from edgepack.quant.passes.awq.folding import Fold
    from edgepack.quant.passes.awq.outputs import LinearSample
    from edgepack.quant.passes.awq.rounding import Rounding

STEPS = 20  # exponents r = 0, 1/20 … 19/20
_LEAST_SCALE = 1e-4


@dataclass(frozen=True)
class Sink:
    """A linear whose columns may be scaled.

    Attributes:
        weight: [out, in].
        rounding: what the file does to it.
        statistics: of its inputs.
        with_importance: whether the file weights errors by E[x²].
        sample: its inputs at some tokens, and the rows that scales are judged on.
    """

    weight: torch.Tensor
    rounding: Rounding
    statistics: LinearStatistics
    with_importance: bool
    sample: LinearSample

    def error(self, scales: torch.Tensor) -> torch.Tensor:
        """Of the outputs, when the columns are rounded times `scales` [in]; for all rows, as the sampled ones tell."""
        rounded = self.rounded(self._exact, scales)
        error = self.sample.error(self._outputs, rounded, scales, self.rounding.activation_block)
        return error * (len(self.weight) / len(rounded))

    @cached_property
    def _exact(self) -> torch.Tensor:
        return self.weight[self.sample.rows]

    @cached_property
    def _outputs(self) -> torch.Tensor:
        return self.sample.inputs @ self._exact.T

    def rounded(self, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """What becomes of `weight` [out, in] when its columns are rounded times `scales` [in] and divided again."""
        importance = None
        if self.with_importance:
            importance = torch.from_numpy(self.statistics.mean_square).to(weight.device) / scales.square()
        return self.rounding(weight * scales, importance) / scales


def candidate_scales(mean_abs: torch.Tensor, weight_size: torch.Tensor, steps: int = STEPS) -> Iterator[torch.Tensor]:
    """The scales that are tried: x̄^r and x̄^r / w̄^(1-r), r = i / steps, each over √(max · min).

    Args:
        mean_abs: x̄, mean |x| of each channel.
        weight_size: w̄, mean |w| of each channel's weights, each row relative to its largest.
        steps: how many exponents.
    """
    activity, size = mean_abs.clamp(min=_LEAST_SCALE), weight_size.clamp(min=_LEAST_SCALE)
    for step in range(steps):
        ratio = step / steps
        for scales in (activity**ratio, activity**ratio / size ** (1 - ratio)):
            scales = scales.clamp(min=_LEAST_SCALE)
            yield scales / (scales.max() * scales.min()).sqrt()


def weight_size(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over all rows of |w| relative to the row's largest: [in]."""
    joined = torch.cat(list(weights)).abs()
    return (joined / joined.amax(1, keepdim=True).clamp(min=1e-12)).mean(0)


@dataclass(frozen=True)
class FoundScales:
    """What a search gives.

    Attributes:
        scales: of the source's channels; ones where no scale helps.
        error: of the outputs.
        plain: the same without any scale.
        tried: how many scales were compared.
    """

    scales: torch.Tensor
    error: float
    plain: float
    tried: int

    @property
    def helps(self) -> bool:
        """Whether there is anything to fold."""
        return self.error < self.plain


class FoldSearch:
    """Finds the scales of one fold in one block.

    No scale at all is one of those that are tried. That a scale must also help on sequences that were held back was
    tried and did not help (docs/lab-notes.md).

    Args:
        fold: where scales go.
        sinks: the fold's linears; their samples are of exact weights.
        heads: of the model.
    """

    def __init__(self, fold: Fold, sinks: Sequence[Sink], heads: HeadCounts) -> None:
        self.fold, self.sinks, self.heads = fold, sinks, heads

    def best(self) -> FoundScales:
        """The scales with the least error of the outputs."""
        mean_abs = torch.from_numpy(self.sinks[0].statistics.mean_abs).to(self.sinks[0].weight.device)
        mean_abs = self._source_channels(mean_abs)
        size = self._source_channels(weight_size([sink.weight for sink in self.sinks]))
        tried = [torch.ones_like(mean_abs), *candidate_scales(mean_abs, size)]
        errors = [self.error(scales) for scales in tried]
        least = min(errors)
        return FoundScales(tried[errors.index(least)], least, errors[0], len(tried))

    def error(self, scales: torch.Tensor) -> float:
        """Error of the outputs when the sinks are rounded with `scales` of the source's channels."""
        columns = spread_over_heads(scales, self.heads) if self.fold.per_head else scales
        return float(torch.stack([sink.error(columns) for sink in self.sinks]).sum())

    def _source_channels(self, columns: torch.Tensor) -> torch.Tensor:
        return gather_heads(columns.clamp(min=_LEAST_SCALE), self.heads) if self.fold.per_head else columns
