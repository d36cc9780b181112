"""Takes activations through a model block by block and lets a visitor look at, or change, each block.

Memory is one block's weights and the activations between two blocks, which stay on the CPU. What a visitor
does is left to `collect` and to the passes.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch

from edgepack.errors import ResourceError
from edgepack.progress import silent
from edgepack.quant.calibration.blocks import BlockwiseModel
from edgepack.quant.calibration.products import as_multiplied, own_products
from edgepack.quant.calibration.statistics import MomentAccumulator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from edgepack.model import Checkpoint
    from edgepack.progress import Progress
    from edgepack.quant.calibration.blocks import Block, BlockCall
    from edgepack.quant.calibration.statistics import LinearStatistics


def calibrated_model(checkpoint: Checkpoint, device: str = "cpu") -> BlockwiseModel:
    """`checkpoint` by blocks, to be calibrated: it multiplies as `own_products` has it. Raises as `BlockwiseModel`."""
    return BlockwiseModel(checkpoint, device, products=own_products(checkpoint, device))


class BatchRunner:
    """Runs work over sequences in batches; halves the batch when the device's memory is full.

    Args:
        model: gives the calls (masks, positions) for a batch's shape.
        tokens: [sequences, length], int64.
        batch: sequences at a time, at first.
    """

    def __init__(self, model: BlockwiseModel, tokens: torch.Tensor, batch: int) -> None:
        self.model, self.tokens, self.batch = model, tokens, batch
        self._calls: dict[int, list[BlockCall]] = {}

    def calls(self, size: int) -> list[BlockCall]:
        """What each block receives beside the hidden state, for `size` sequences."""
        if size not in self._calls:
            self._calls = {known: calls for known, calls in self._calls.items() if known <= self.batch}
            self._calls[size] = self.model.calls(self.tokens[:size])
        return self._calls[size]

    def map(self, work: Callable[[int, int], torch.Tensor], part: slice = slice(None)) -> torch.Tensor:
        """`work(start, stop)` over all sequences, or over a `part` of them, joined on the CPU.

        Raises:
            ResourceError: the device's memory is full even with one sequence at a time.
        """
        parts, (start, end, _) = [], part.indices(len(self.tokens))
        while start < end:
            stop = min(start + self.batch, end)
            try:
                parts.append(work(start, stop).cpu())
                start = stop
            except torch.OutOfMemoryError as error:
                self._smaller_batch(error)
        return torch.cat(parts)

    def _smaller_batch(self, error: Exception) -> None:
        if self.batch == 1:
            length = self.tokens.shape[1]
            raise ResourceError(
                f"device '{self.model.device}': memory is full with one sequence of {length} tokens: use shorter "
                "sequences or another device"
            ) from error
        self.batch = max(1, self.batch // 2)
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()


class BlockVisit:
    """A loaded block with the activations that enter it.

    Attributes:
        block: its weights may be changed; later blocks then see the changed block's outputs.
        inputs: [sequences, length, width] on the CPU.
    """

    def __init__(self, block: Block, inputs: torch.Tensor, runner: BatchRunner) -> None:
        self.block, self.inputs, self.runner = block, inputs, runner

    def run(self, start: int, stop: int) -> torch.Tensor:
        """The block's output for sequences `start` (included) to `stop` (not included)."""
        hidden = self.inputs[start:stop].to(self.runner.model.device)
        return self.block.run(hidden, self.runner.calls(stop - start)[self.block.index])

    def outputs(self, part: slice = slice(None)) -> torch.Tensor:
        """The block's output for all sequences, or a `part` of them, with its weights as they are now."""
        return self.runner.map(self.run, part)

    def observe(
        self, names: Sequence[str], with_hessian: bool, part: slice = slice(None)
    ) -> tuple[dict[str, LinearStatistics], torch.Tensor]:
        """Statistics of what enters the linears `names`, and the block's outputs of the same run."""
        while True:
            batch = self.runner.batch
            with observed({name: self.block.linears[name] for name in names}, with_hessian) as watch:
                outputs = self.outputs(part)
            if self.runner.batch == batch:  # else a batch was run twice and counted twice
                return watch.results(), outputs


class InputWatch:
    """Accumulates the inputs of several linears; those that get the same tensor share one accumulator."""

    def __init__(self, modules: Mapping[str, nn.Module], with_hessian: bool) -> None:
        self.modules, self.with_hessian = modules, with_hessian
        self._accumulators: dict[str, MomentAccumulator] = {}
        self._last: tuple[Any, MomentAccumulator | None] = (None, None)

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """A forward pre-hook for linear `name`."""

        def look(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            tensor, (last, shared) = arguments[0], self._last
            if tensor is last and shared is not None:
                self._accumulators.setdefault(name, shared)
                return
            accumulator = self._accumulators.setdefault(name, MomentAccumulator(self.with_hessian))
            accumulator.add(as_multiplied(tensor))
            self._last = (tensor, accumulator)

        return look

    @contextmanager
    def on(self) -> Iterator[None]:
        """Look while the context is open."""
        handles = [module.register_forward_pre_hook(self.hook(name)) for name, module in self.modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def results(self) -> dict[str, LinearStatistics]:
        """The statistics by linear; those of a shared input are one value."""
        done: dict[int, LinearStatistics] = {}
        found = {}
        for name, accumulator in self._accumulators.items():
            if id(accumulator) not in done:
                done[id(accumulator)] = accumulator.result(name)
            found[name] = done[id(accumulator)]
        return found


@contextmanager
def observed(modules: Mapping[str, nn.Module], with_hessian: bool) -> Iterator[InputWatch]:
    """Watch what enters `modules` while the context is open."""
    watch = InputWatch(modules, with_hessian)
    with watch.on():
        yield watch


class Visitor(Protocol):
    """Looks at one block and returns its outputs, or None to have them computed after any change."""

    def __call__(self, visit: BlockVisit) -> torch.Tensor | None:
        """Visit a block; called in the model's order."""
        ...


def sweep(
    model: BlockwiseModel,
    tokens: torch.Tensor,
    visitor: Visitor,
    *,
    batch: int = 8,
    progress: Progress = silent,
    label: str = "Calibrating",
    first_block: int = 0,
    hidden: torch.Tensor | None = None,
) -> torch.Tensor:
    """Visit every block in order.

    Args:
        model: its source's weights are loaded block by block.
        tokens: [sequences, length], int64.
        visitor: called once a block.
        batch: sequences at a time; halved when the device's memory is full.
        progress: told of each block done.
        label: what the progress is called.
        first_block: where to start; blocks before it are not visited.
        hidden: what enters `first_block` [sequences, length, width]; the embedded tokens when None.

    Returns:
        The last block's outputs [sequences, length, width], on the CPU.

    Raises:
        NumericError: NaN or infinity; the text names the layer.
        ResourceError: the device's memory is full with one sequence at a time.
    """
    runner = BatchRunner(model, tokens, batch)
    if hidden is None:
        with model.shell():
            hidden = runner.map(lambda start, stop: model.embed(tokens[start:stop]))
    with progress(label, model.block_count - first_block, " blocks") as advance:
        for index in range(first_block, model.block_count):
            with model.block(index) as block:
                visit = BlockVisit(block, hidden, runner)
                outputs = visitor(visit)
                hidden = visit.outputs() if outputs is None else outputs
            advance(1)
    return hidden
