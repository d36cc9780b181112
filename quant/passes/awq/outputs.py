"""What enters a block's linears at some tokens, and how much each of their outputs moves the module above.

A scale is judged on these: some tokens and some rows of each linear; no module is run again for a scale.
Activations are rounded on the way as llama.cpp's CPU kernels round them. Which scales are tried is left to `scales`.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from edgepack.quant.passes.awq.rounding import rounded_activations

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgepack.quant.calibration.sweep import BlockVisit
    from edgepack.quant.passes.awq.folding import Fold

# Tokens and rows of a linear that a scale is judged on.
TOKENS = 512
ROWS = 128


@dataclass(frozen=True)
class LinearSample:
    """A linear at some tokens.

    Attributes:
        inputs: float32 [tokens, in].
        sensitivity: float32 [tokens, rows]: by how much the square of a small change of each output moves the squared
            output of the module above, summed over its channels; None where the linear's own outputs are what counts.
        rows: int64 [rows], which outputs.
    """

    inputs: torch.Tensor
    sensitivity: torch.Tensor | None
    rows: torch.Tensor

    def error(self, outputs: torch.Tensor, rounded: torch.Tensor, scales: torch.Tensor, block: int) -> torch.Tensor:
        """Mean over tokens of the outputs' squared error, weighted by sensitivity and summed over all rows.

        Args:
            outputs: exact ones of the sampled rows [tokens, rows].
            rounded: what the file makes of those rows' weights [rows, in].
            scales: of the input channels [in]: the file's inputs are x / scales.
            block: activations that share a scale when the file runs; 0 for exact ones.
        """
        inputs = self.inputs
        if block:
            inputs = rounded_activations(inputs / scales, block) * scales
        gap = (inputs @ rounded.T - outputs).square_()
        if self.sensitivity is not None:
            gap *= self.sensitivity
        return gap.sum() / len(self.inputs)


def sample_block(visit: BlockVisit, folds: Sequence[Fold], sequences: int) -> dict[str, LinearSample]:
    """Samples of every sink of `folds`, by its path in the block, from one run over some of the sequences.

    Args:
        visit: the block with its inputs.
        folds: their sinks and parents are looked at.
        sequences: how many, in batches that lie evenly over all that there are.
    """
    batches = spread_batches(len(visit.inputs), sequences, visit.runner.batch)
    taken = -(-TOKENS // sum(stop - start for start, stop in batches))
    watchers = [_FoldWatcher(visit.block.module, fold, taken) for fold in folds]
    with ExitStack() as stack:
        for watcher in watchers:
            for handle in watcher.hooks():
                stack.callback(handle.remove)
        for start, stop in batches:
            visit.run(start, stop)
    return {path: sample for watcher in watchers for path, sample in watcher.samples().items()}


class _FoldWatcher:
    """Keeps what enters the sinks of a fold and the sensitivity of its parent to what leaves them.

    With v random signs, the gradient of v · y by an output has the mean square that all channels of y together have.

    Args:
        module: the block.
        fold: whose sinks are watched.
        taken: tokens of each sequence.
    """

    def __init__(self, module: Any, fold: Fold, taken: int) -> None:
        self._module, self._fold, self._taken = module, fold, taken
        self._inputs: list[torch.Tensor] = []
        self._gradients: dict[str, list[torch.Tensor]] = {path: [] for path in fold.sinks}
        self._leaves: dict[str, torch.Tensor] = {}
        self._rows: dict[str, torch.Tensor] = {}

    def hooks(self) -> list[Any]:
        """Registers all hooks; the caller removes them."""
        handles = [
            self._module.get_submodule(path).register_forward_hook(self._sink_hook(path)) for path in self._fold.sinks
        ]
        if self._fold.parent:
            handles.append(self._module.get_submodule(self._fold.parent).register_forward_hook(self._parent_hook))
        return handles

    def _sink_hook(self, path: str) -> Callable[..., torch.Tensor | None]:
        def hook(_module: Any, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
            if path == self._fold.sinks[0]:
                self._inputs.append(self._some(arguments[0].detach()))
            self._rows[path] = _evenly(output.shape[-1], ROWS).to(output.device)
            if not self._fold.parent:
                return None
            self._leaves[path] = output.detach().requires_grad_()
            return self._leaves[path]

        return hook

    def _parent_hook(self, _module: Any, _arguments: tuple[Any, ...], output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        generator = torch.Generator().manual_seed(len(self._inputs))
        signs = torch.randint(2, first.shape, generator=generator).to(first.device, first.dtype) * 2 - 1
        leaves = [self._leaves[path] for path in self._fold.sinks]
        for path, gradient in zip(self._fold.sinks, torch.autograd.grad((first * signs).sum(), leaves), strict=True):
            self._gradients[path].append(self._some(gradient)[:, self._rows[path]].square())
        self._leaves.clear()
        return (first.detach(), *output[1:]) if isinstance(output, tuple) else first.detach()

    def _some(self, values: torch.Tensor) -> torch.Tensor:
        """Evenly spread tokens of each sequence: [batch, length, width] → [tokens, width]."""
        chosen = _evenly(values.shape[-2], self._taken).to(values.device)
        return values[..., chosen, :].reshape(-1, values.shape[-1]).float()

    def samples(self) -> dict[str, LinearSample]:
        """By path of the sink."""
        inputs = torch.cat(self._inputs)
        return {
            path: LinearSample(inputs, torch.cat(found) if found else None, self._rows[path])
            for path, found in self._gradients.items()
        }


def _evenly(count: int, wanted: int) -> torch.Tensor:
    """At most `wanted` of `count` places, evenly spread: int64."""
    return torch.linspace(0, count - 1, min(count, wanted)).round().long()


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
