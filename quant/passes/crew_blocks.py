"""Blocks that change while they are walked, run by a crew: sequences are split over workers, sums added in order.

A block's outputs need its changed weights, and those all of its inputs: there is nothing to relay, so what one batch
adds to H comes back, strip by strip, and is added as one process adds it. What is changed is the passes' own.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgepack.quant.calibration.products import as_multiplied
from edgepack.quant.calibration.statistics import BatchSums, MomentAccumulator, batch_sums
from edgepack.quant.calibration.sweep import BlockVisit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from edgepack.crew import Crew
    from edgepack.quant.calibration.block_context import BlockContext
    from edgepack.quant.calibration.blocks import Block
    from edgepack.quant.calibration.statistics import LinearStatistics
    from edgepack.quant.calibration.sweep import BatchRunner
    from edgepack.quant.passes.array_folder import ArrayFolder


@dataclass(frozen=True)
class BatchPiece:
    """A batch on its way through a block.

    Attributes:
        index: of the block.
        hidden: what enters, float32 [batch, length, width].
        names: linears to be observed; none for the outputs alone.
        with_hessian: whether their H is wanted.
        changed: weights that stand in the place of the checkpoint's; None for its own.
    """

    index: int
    hidden: NDArray[np.float32]
    names: tuple[str, ...] = ()
    with_hessian: bool = False
    changed: ArrayFolder | None = None


@dataclass(frozen=True)
class BatchOutcome:
    """What became of it.

    Attributes:
        outputs: float32 [batch, length, width].
        owners: linear → number of its sums: those that get the same tensor share them.
        sums: of what entered the linears.
    """

    outputs: NDArray[np.float32]
    owners: Mapping[str, int]
    sums: tuple[BatchSums, ...]

    @property
    def nbytes(self) -> int:
        """What it takes."""
        return self.outputs.nbytes + sum(each.nbytes for each in self.sums)


def run_batch(context: BlockContext, piece: BatchPiece) -> BatchOutcome:
    """Take a batch through a block; what a worker does."""
    changed = None
    if piece.changed is not None:
        own = context.model.tensor_names(piece.index)
        changed = {name: piece.changed[name] for name in own if name in piece.changed}
    block = context.block(piece.index, changed)
    hidden = torch.from_numpy(np.array(piece.hidden)).to(context.model.device)
    watch = _Watch(piece.with_hessian)
    with watch.on({name: block.linears[name] for name in piece.names}):
        outputs = block.run(hidden, context.runner.calls(len(hidden))[piece.index]).cpu()
    return BatchOutcome(outputs.detach().numpy(), watch.owners, tuple(watch.sums))


class _Watch:
    """As `quant.calibration.sweep.InputWatch`, of one batch that is not added to anything yet."""

    def __init__(self, with_hessian: bool) -> None:
        self.owners: dict[str, int] = {}
        self.sums: list[BatchSums] = []
        self._with_hessian = with_hessian
        self._last: Any = None

    @contextmanager
    def on(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Look while the context is open."""
        handles = [module.register_forward_pre_hook(self._hook(name)) for name, module in modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def look(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments[0] is not self._last:
                self._last = arguments[0]
                self.sums.append(batch_sums(as_multiplied(self._last), with_hessian=self._with_hessian))
            self.owners[name] = len(self.sums) - 1

        return look


class CrewVisit(BlockVisit):
    """A visit whose batches a crew runs.

    Args:
        block: loaded here too: its weights are changed here.
        inputs: [sequences, length, width] on the CPU.
        runner: how many sequences are a batch.
        crew: runs them.
        context: what `Crew.share` gave of a `BlockContext`.
    """

    def __init__(
        self, block: Block, inputs: torch.Tensor, runner: BatchRunner, crew: Crew, context: object
    ) -> None:  # fmt: skip
        super().__init__(block, inputs, runner)
        self.crew, self.context = crew, context

    def observe(
        self, names: Sequence[str], with_hessian: bool, part: slice = slice(None)
    ) -> tuple[dict[str, LinearStatistics], torch.Tensor]:
        """As `BlockVisit.observe`, of the block as the checkpoint has it."""
        found: dict[int, MomentAccumulator] = {}
        owners: Mapping[str, int] = {}
        parts = []
        for outcome in self._run(part, tuple(names), with_hessian, None):
            owners = outcome.owners
            for number, sums in enumerate(outcome.sums):
                found.setdefault(number, MomentAccumulator(with_hessian)).take(sums)
            parts.append(torch.from_numpy(np.array(outcome.outputs)))
        first = {number: name for name, number in reversed(list(owners.items()))}
        results = {number: accumulator.result(first[number]) for number, accumulator in found.items()}
        return {name: results[number] for name, number in owners.items()}, torch.cat(parts)

    def outputs_with(self, changed: ArrayFolder) -> torch.Tensor:
        """The block's output for all sequences with weights that were changed."""
        outcomes = self._run(slice(None), (), False, changed)
        return torch.cat([torch.from_numpy(np.array(outcome.outputs)) for outcome in outcomes])

    def _run(
        self, part: slice, names: tuple[str, ...], with_hessian: bool, changed: ArrayFolder | None
    ) -> Iterator[BatchOutcome]:
        start, end, _ = part.indices(len(self.inputs))
        index, batch = self.block.index, self.runner.batch
        pieces = (
            BatchPiece(index, self.inputs[first : min(first + batch, end)].numpy(), names, with_hessian, changed)
            for first in range(start, end, batch)
        )
        return self.crew.map(run_batch, self.context, pieces, need=self._need, with_torch=True)

    def _need(self, piece: BatchPiece) -> int:
        """A block, one batch's activations several times, and what it adds to H."""
        weights = 4 * sum(parameter.numel() for parameter in self.block.module.parameters())
        moments = 4 * sum(self.block.weight(name).shape[1] ** 2 for name in piece.names if piece.with_hessian)
        return int(weights + moments + 16 * piece.hidden.nbytes)
