"""Samples of what enters and leaves some linears at chosen tokens, with the gradients there: one block, one batch.

Which tokens, and the way through the model, are `input_samples`'.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from edgepack.errors import NumericError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import TypeAlias

    from torch import nn

    from edgepack.quant.calibration.blocks import Block
    from edgepack.quant.calibration.sweep import BatchRunner

    BlockWork: TypeAlias = "Callable[[Block, Mapping[str, InputSample]], Any]"


@dataclass(frozen=True)
class InputSample:
    """A matrix at some tokens; gradients are of -log p(label) summed over all later tokens of the sequence.

    Attributes:
        inputs: float32 [tokens, in].
        gradients: at the inputs, by way of this matrix alone, float32 [tokens, in].
        outputs: gradients at the outputs, float32 [tokens, out].
    """

    inputs: torch.Tensor
    gradients: torch.Tensor
    outputs: torch.Tensor


class BlockSamples:
    """Samples of a loaded block's linears, batch by batch.

    Args:
        block: the block.
    """

    def __init__(self, block: Block) -> None:
        self._block = block
        self._parts: dict[str, list[InputSample]] = {}

    def run(
        self, entering: torch.Tensor, after: torch.Tensor, places: torch.Tensor, runner: BatchRunner
    ) -> torch.Tensor:
        """A batch of what enters the block and of the gradient behind it → the gradient in front of it, on the CPU.

        Args:
            entering: [sequences, length, width].
            after: likewise.
            places: of the tokens that are kept [sequences, kept].
            runner: gives masks and positions.
        """
        hidden = entering.to(runner.model.device).requires_grad_(True)
        with torch.enable_grad(), watched_linears(self._block.linears) as watch:
            output = self._block.run(hidden, runner.calls(len(hidden))[self._block.index])
        found, before = watch.back(output, after.to(hidden.device), hidden, places)
        for name, sample in found.items():
            self._parts.setdefault(name, []).append(sample)
        return before

    def joined(self) -> dict[str, InputSample]:
        """By checkpoint name; raises NumericError."""
        return {name: joined_samples(samples, f"layer '{name}'") for name, samples in self._parts.items()}


@contextmanager
def watched_linears(linears: Mapping[str, nn.Module]) -> Iterator[LinearWatch]:
    """Watch `linears` while the context is open."""
    watch = LinearWatch(linears)
    watch.open()
    try:
        yield watch
    finally:
        watch.close()


class LinearWatch:
    """Adds zeros to what enters and leaves some linears, at which a gradient can be taken, while it is open."""

    def __init__(self, linears: Mapping[str, nn.Module]) -> None:
        self._linears, self._stack = linears, ExitStack()
        self._inputs: dict[str, torch.Tensor] = {}
        self._leaves: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def open(self) -> None:
        """Hook every linear."""
        for name, module in self._linears.items():
            for handle in (
                module.register_forward_pre_hook(self._entering(name)),
                module.register_forward_hook(self._leaving(name)),
            ):
                self._stack.callback(handle.remove)

    def close(self) -> None:
        """Remove all hooks."""
        self._stack.close()

    def _entering(self, name: str) -> Any:
        def look(_module: Any, arguments: tuple[Any, ...]) -> Any:
            if not arguments or arguments[0].ndim != 3:
                return None
            zeros = torch.zeros_like(arguments[0], requires_grad=True)
            self._inputs[name], self._leaves[name] = arguments[0].detach(), (zeros, zeros)
            return (arguments[0] + zeros, *arguments[1:])

        return look

    def _leaving(self, name: str) -> Any:
        def look(_module: Any, _arguments: Any, output: Any) -> Any:
            if name not in self._leaves or not isinstance(output, torch.Tensor):
                self._leaves.pop(name, None)
                return None
            zeros = torch.zeros_like(output, requires_grad=True)
            self._leaves[name] = (self._leaves[name][0], zeros)
            return output + zeros

        return look

    def back(
        self, output: torch.Tensor, gradient: torch.Tensor, hidden: torch.Tensor, places: torch.Tensor
    ) -> tuple[dict[str, InputSample], torch.Tensor]:
        """Samples at `places` [sequences, kept], from the gradient at `output`; the gradient at `hidden` [CPU]."""
        names = list(self._leaves)
        leaves = [leaf for name in names for leaf in self._leaves[name]]
        before, *found = torch.autograd.grad(output, (hidden, *leaves), gradient, allow_unused=True)
        samples = {}
        for index, name in enumerate(names):
            at_inputs, at_outputs = found[2 * index], found[2 * index + 1]
            if at_inputs is not None and at_outputs is not None:
                every = (self._inputs[name], at_inputs, at_outputs)
                samples[name] = InputSample(*(_at(each, places) for each in every))
        return samples, before.cpu()


def _at(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Rows of [sequences, length, width] at `places` [sequences, kept]: float32 [sequences · kept, width], a copy."""
    rows = torch.arange(len(values), device=values.device)[:, None]
    return values[rows, places.to(values.device)].detach().float().flatten(0, 1)


def joined_samples(parts: list[InputSample], what: str) -> InputSample:
    """Several batches' samples as one.

    Raises:
        NumericError: NaN or infinity; the text begins with `what`.
    """
    every = [torch.cat([getattr(part, field) for part in parts]) for field in ("inputs", "gradients", "outputs")]
    if not all(torch.isfinite(each).all() for each in every):
        raise NumericError(f"{what}: NaN or infinity in its inputs or gradients")
    return InputSample(*every)
