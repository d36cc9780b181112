"""Searches a fold's scales: those with which the block loses least when its weights are rounded for the file.

One block at a time; the walk over the model is left to `weights`. Source: AWQ, Lin et al. (arXiv 2306.00978).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from edgepack.quant.passes.awq.folding import HeadCounts, gather_heads, spread_over_heads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

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


class FoldSearch:
    """Finds the scales of one fold in one block.

    Args:
        visit: the block with its inputs.
        fold: where scales go.
        sinks: the fold's linears.
        heads: of the model.
        sequences: how many sequences the parent's output is compared on.
    """

    def __init__(self, visit: BlockVisit, fold: Fold, sinks: Sequence[Sink], heads: HeadCounts, sequences: int) -> None:
        self.fold, self.sinks, self.heads = fold, sinks, heads
        self.block: Block = visit.block
        self.originals = [self.block.weight(sink.name).clone() for sink in sinks]
        self.calls = _parent_calls(visit, fold.parent, sequences) if fold.parent else []
        self.targets = [self._parent(call).clone() for call in self.calls]

    def best(self) -> tuple[torch.Tensor, float, float]:
        """(scales of the source's channels, error with them, error without any)."""
        plain = self._loss(torch.ones_like(self._mean_abs()))
        best, least = torch.ones_like(self._source_channels(self._mean_abs())), plain
        size = weight_size(self.originals)
        candidates = candidate_scales(self._source_channels(self._mean_abs()), self._source_channels(size))
        for scales in candidates:
            loss = self._loss(self._columns(scales))
            if loss < least:
                best, least = scales, loss
        return best, least, plain

    def _mean_abs(self) -> torch.Tensor:
        return torch.from_numpy(self.sinks[0].statistics.mean_abs).to(self.originals[0].device)

    def _source_channels(self, columns: torch.Tensor) -> torch.Tensor:
        return gather_heads(columns.clamp(min=_LEAST_SCALE), self.heads) if self.fold.per_head else columns

    def _columns(self, scales: torch.Tensor) -> torch.Tensor:
        return spread_over_heads(scales, self.heads) if self.fold.per_head else scales

    def _loss(self, columns: torch.Tensor) -> float:
        """Error of the parent's output, or of the sinks' own, when rounded with scales `columns` [in]."""
        rounded = [sink.rounded(weight, columns) for sink, weight in zip(self.sinks, self.originals, strict=True)]
        if not self.calls:
            pairs = zip(self.sinks, self.originals, rounded, strict=True)
            return sum(output_error(new - old, sink.statistics) for sink, old, new in pairs)
        with self._replaced(rounded):
            errors = [(self._parent(call) - target).square().mean() for call, target in self._compared()]
        return float(torch.stack(errors).mean())

    def _compared(self) -> Iterator[tuple[Any, torch.Tensor]]:
        return zip(self.calls, self.targets, strict=True)

    def _parent(self, call: tuple[tuple[Any, ...], Mapping[str, Any]]) -> torch.Tensor:
        output = self.block.module.get_submodule(self.fold.parent)(*call[0], **call[1])
        return output[0] if isinstance(output, tuple) else output

    @contextmanager
    def _replaced(self, weights: Sequence[torch.Tensor]) -> Iterator[None]:
        for sink, weight in zip(self.sinks, weights, strict=True):
            self.block.set_weight(sink.name, weight)
        try:
            yield
        finally:
            for sink, weight in zip(self.sinks, self.originals, strict=True):
                self.block.set_weight(sink.name, weight)


def output_error(error: torch.Tensor, statistics: LinearStatistics) -> float:
    """Mean squared error of a linear's output for a weight error [out, in]: tr(E·H·Eᵀ)."""
    assert statistics.hessian is not None
    hessian = torch.from_numpy(statistics.hessian).to(error.device, error.dtype)
    return float(((error @ hessian) * error).sum())


def _parent_calls(visit: BlockVisit, parent: str, sequences: int) -> list[tuple[tuple[Any, ...], Mapping[str, Any]]]:
    """What the module `parent` is called with for the first `sequences` sequences."""
    calls: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = []

    def keep(_module: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        calls.append((arguments, keywords))

    handle = visit.block.module.get_submodule(parent).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        limit = min(sequences, len(visit.inputs))
        for start in range(0, limit, visit.runner.batch):
            visit.run(start, min(start + visit.runner.batch, limit))
    finally:
        handle.remove()
    return calls
