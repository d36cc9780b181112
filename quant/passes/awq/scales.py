"""Searches a fold's scales: those with which the block loses least when its weights are rounded for the file.

One block at a time; the walk over the model is left to `weights`. Source: AWQ, Lin et al. (arXiv 2306.00978).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from edgepack.quant.passes.awq.folding import HeadCounts, gather_heads, spread_over_heads
from edgepack.quant.passes.awq.outputs import ParentOutputs, replaced, rounded_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgepack.quant.calibration.blocks import Block
    from edgepack.quant.calibration.statistics import LinearStatistics
    from edgepack.quant.calibration.sweep import BlockVisit
    from edgepack.quant.passes.awq.folding import Fold
    from edgepack.quant.passes.awq.rounding import Rounding

STEPS = 20  # exponents r = 0, 1/20 … 19/20
_LEAST_SCALE = 1e-4


@dataclass(frozen=True)
class Sink:
    """A linear whose columns may be scaled.

    Attributes:
        name: its weight's checkpoint name.
        module: the linear.
        rounding: what the file does to its weight.
        statistics: of its inputs, Hessian included.
        with_importance: whether the file weights errors by E[x²].
    """

    name: str
    module: Any
    rounding: Rounding
    statistics: LinearStatistics
    with_importance: bool

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
        visit: the block with its inputs.
        fold: where scales go.
        sinks: the fold's linears.
        heads: of the model.
        sequences: how many sequences outputs are compared on.
    """

    def __init__(self, visit: BlockVisit, fold: Fold, sinks: Sequence[Sink], heads: HeadCounts, sequences: int) -> None:
        self.fold, self.sinks, self.heads = fold, sinks, heads
        self.block: Block = visit.block
        self.originals = {sink.name: self.block.weight(sink.name).clone() for sink in sinks}
        self.outputs = ParentOutputs(visit, (fold.parent,) if fold.parent else fold.sinks, sequences)

    def best(self) -> FoundScales:
        """The scales with the least error of the outputs."""
        mean_abs = self._source_channels(self._mean_abs())
        size = self._source_channels(weight_size(list(self.originals.values())))
        tried = [torch.ones_like(mean_abs), *candidate_scales(mean_abs, size)]
        errors = [self.error(scales) for scales in tried]
        least = min(errors)
        return FoundScales(tried[errors.index(least)], least, errors[0], len(tried))

    def error(self, scales: torch.Tensor) -> float:
        """Error of the outputs when the sinks are rounded with `scales` of the source's channels."""
        columns = spread_over_heads(scales, self.heads) if self.fold.per_head else scales
        rounded = {sink.name: sink.rounded(self.originals[sink.name], columns) for sink in self.sinks}
        with replaced(self.block, rounded), ExitStack() as stack:
            for sink in self.sinks:
                stack.enter_context(rounded_inputs(sink.module, columns, sink.rounding.activation_block))
            return self.outputs.error()

    def _mean_abs(self) -> torch.Tensor:
        device = self.originals[self.sinks[0].name].device
        return torch.from_numpy(self.sinks[0].statistics.mean_abs).to(device)

    def _source_channels(self, columns: torch.Tensor) -> torch.Tensor:
        return gather_heads(columns.clamp(min=_LEAST_SCALE), self.heads) if self.fold.per_head else columns
