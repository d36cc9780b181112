"""Outputs of the modules above a fold's sinks: recorded once with exact weights, compared with what rounded ones give.

Activations are rounded on the way as llama.cpp's CPU kernels round them. Which scales are tried is left to `scales`.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from edgepack.quant.passes.awq.rounding import rounded_activations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from edgepack.quant.calibration.blocks import Block
    from edgepack.quant.calibration.sweep import BlockVisit


@dataclass(frozen=True)
class _Call:
    """One call of a module and what it gave."""

    module: nn.Module
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    output: torch.Tensor

    @property
    def tokens(self) -> int:
        """Tokens of the call."""
        count: int = self.output[..., 0].numel()
        return count

    def error(self) -> torch.Tensor:
        """Squared error of the module's output now, summed over channels and tokens."""
        return (_first(self.module(*self.arguments, **self.keywords)) - self.output).square().sum()


def _first(output: Any) -> torch.Tensor:
    tensor: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


class ParentOutputs:
    """Modules of a block with their inputs and outputs over some sequences, before anything is rounded.

    Args:
        visit: the block with its inputs.
        parents: paths of the modules in the block.
        sequences: how many, in batches that lie evenly over all that there are.
    """

    def __init__(self, visit: BlockVisit, parents: Sequence[str], sequences: int) -> None:
        self._calls: list[_Call] = []
        self._modules = [visit.block.module.get_submodule(path) for path in parents]
        handles = [module.register_forward_hook(self._keep, with_kwargs=True) for module in self._modules]
        try:
            for start, stop in spread_batches(len(visit.inputs), sequences, visit.runner.batch):
                visit.run(start, stop)
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], output: Any) -> None:
        self._calls.append(_Call(module, arguments, keywords, _first(output).detach().clone()))

    def error(self) -> float:
        """Squared error of the outputs as the block's weights are now: a token's mean, summed over channels."""
        total = torch.stack([call.error() for call in self._calls]).sum()
        return float(total) * len(self._modules) / sum(call.tokens for call in self._calls)


def spread_batches(available: int, wanted: int, batch: int) -> list[tuple[int, int]]:
    """Batches of sequences, (start, stop), evenly spread and without overlap.

    Args:
        available: sequences in all.
        wanted: how many are taken in all, if there are so many; a few less where batches do not divide them.
        batch: sequences in a batch at most.
    """
    wanted = min(wanted, available)
    count = -(-wanted // batch)
    size = wanted // count
    starts = [round(number * (available - size) / max(count - 1, 1)) for number in range(count)]
    return [(start, start + size) for start in starts]


def split_sequences(available: int, wanted: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The sequences that a search of clips sees and those that are held back to accept its result, as (start, stop).

    Two thirds are searched at most, the end is held back; a single sequence has to serve for both.

    Args:
        available: sequences in all, at least 1.
        wanted: of the search.
    """
    searched = max(1, min(wanted, available * 2 // 3))
    held = max(1, min(searched // 2, available - searched))
    return (0, searched), (available - held, available)


@contextmanager
def rounded_inputs(module: nn.Module, scales: torch.Tensor, block: int) -> Iterator[None]:
    """Round what enters `module` as the file's kernels will, where the file's inputs are x / `scales` [in].

    Args:
        module: a linear.
        scales: of its input channels.
        block: activations that share a scale; 0 for none.
    """
    if not block:
        yield
        return

    def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (rounded_activations(arguments[0] / scales, block) * scales, *arguments[1:])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replaced(block: Block, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """`weights` [out, in] in the place of the block's own while the context is open."""
    before = {name: block.weight(name).clone() for name in weights}
    for name, weight in weights.items():
        block.set_weight(name, weight)
    try:
        yield
    finally:
        for name, weight in before.items():
            block.set_weight(name, weight)
