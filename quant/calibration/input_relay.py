"""Samples of what enters each matrix, taken by a crew: each block is one stage of a relay, forwards and then backwards.

What is done with a block's samples is done by the worker that has the block loaded, when its last batch has gone back:
meanwhile the gradient is in the blocks before. Samples are `input_samples`'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgepack.files.arrays import new_array
from edgepack.quant.calibration.block_context import BlockContext, stage_bytes
from edgepack.quant.calibration.block_samples import BlockSamples
from edgepack.quant.calibration.curvature_relay import ActivationFiles, BlockStage
from edgepack.quant.calibration.sweep import BatchRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.crew import Crew
    from edgepack.quant.calibration.block_samples import BlockWork
    from edgepack.quant.calibration.input_samples import InputSampler

_SAMPLE_BYTES = 24  # a kept number: a sample, joined, squared, and what the search makes of it


class OutputStage(BlockStage):
    """A block that keeps nothing."""

    def step(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """A batch of what enters the block → what leaves it, [sequences, length, width]."""
        entering = torch.from_numpy(np.array(hidden)).to(self.context.model.device)
        outputs = self.block.run(entering, self.context.runner.calls(len(entering))[self.block.index])
        return np.asarray(outputs.cpu().detach().numpy())

    def finish(self) -> None:
        """Nothing."""


class SampleStage(BlockStage):
    """Samples of a block's linears, and what is done with them.

    Args:
        context: the model, and the work.
        number: of the block.
    """

    def __init__(self, context: tuple[BlockContext, BlockWork], number: int) -> None:
        super().__init__(context[0], number)
        self._samples, self._work = BlockSamples(self.block), context[1]

    def step(
        self, entering: NDArray[np.float32], after: NDArray[np.float32], places: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """As `BlockSamples.run`."""
        hidden, gradient, kept = (torch.from_numpy(np.array(each)) for each in (entering, after, places))
        return np.asarray(self._samples.run(hidden, gradient, kept, self.context.runner).numpy())

    def finish(self) -> Any:
        """What the work gives; it may change the block, which goes."""
        return self._work(self.block, self._samples.joined())


def open_outputs(context: BlockContext, number: int) -> OutputStage:
    """A stage of the way forwards, on a worker."""
    return OutputStage(context, number)


def open_samples(context: tuple[BlockContext, BlockWork], number: int) -> SampleStage:
    """A stage of the way backwards, on a worker."""
    return SampleStage(context, number)


class _Files:
    """Arrays on disk that fill batch by batch: number → file."""

    def __init__(self, path: Callable[[int], Path]) -> None:
        self.path = path

    def filling(self, shape: tuple[int, ...], number: int) -> NDArray[np.float32]:
        """As `curvature_relay.Filling.filling`."""
        made: NDArray[np.float32] = new_array(self.path(number), np.float32, shape)
        return made

    def read(self, number: int) -> NDArray[np.float32]:
        """One that is filled."""
        found: NDArray[np.float32] = np.load(self.path(number), mmap_mode="r")
        return found


class _ForwardLeg(ActivationFiles):
    """From block to block; what enters each stays in the sampler's folder."""

    def __init__(self, sampler: InputSampler) -> None:
        self._arrays = _Files(sampler.entering)
        super().__init__(self._arrays, sampler.batch, len(sampler.tokens))

    def feed(self, stage: int, step: int) -> tuple[NDArray[np.float32]]:
        """As `edgepack.crew.Leg.feed`."""
        found = self.get(stage, step)
        return (np.array(self._arrays.read(stage)[self.rows(step)]) if found is None else found,)

    def took(self, stage: int, step: int, output: NDArray[np.float32]) -> None:
        """As `edgepack.crew.Leg.took`."""
        self.put(stage + 1, step, output)

    def finished(self, stage: int, _result: None) -> None:
        """As `edgepack.crew.Leg.finished`."""
        self.whole(stage + 1)


class _BackwardLeg(ActivationFiles):
    """From block to block, the last first; files go when the block that reads them is done.

    Attributes:
        results: of blocks that are done, to be taken.
    """

    def __init__(self, sampler: InputSampler) -> None:
        self._sampler, self._entering = sampler, _Files(sampler.entering)
        self._arrays = _Files(lambda number: sampler.folder / f"gradient-{number}.npy")
        super().__init__(self._arrays, sampler.batch, len(sampler.tokens))
        self.results: dict[int, Any] = {}

    def feed(self, stage: int, step: int) -> tuple[NDArray[Any], ...]:
        """As `edgepack.crew.Leg.feed`."""
        rows = self.rows(step)
        return np.array(self._entering.read(stage)[rows]), self._after(stage, step), self._sampler.places[rows].numpy()

    def _after(self, stage: int, step: int) -> NDArray[np.float32]:
        """The gradient behind a block."""
        rows = self.rows(step)
        if stage + 1 == self._sampler.model.block_count:
            return np.asarray(self._sampler.gradient[rows].numpy())
        found = self.get(stage + 1, step)
        return np.array(self._arrays.read(stage + 1)[rows]) if found is None else found

    def took(self, stage: int, step: int, output: NDArray[np.float32]) -> None:
        """As `edgepack.crew.Leg.took`."""
        self.put(stage, step, output)

    def finished(self, stage: int, result: Any) -> None:
        """As `edgepack.crew.Leg.finished`."""
        self.whole(stage)
        self.results[stage] = result
        self._arrays.path(stage + 1).unlink(missing_ok=True)
        self._entering.path(stage).unlink()
        if not stage:
            self._arrays.path(0).unlink()


def relayed_forward(sampler: InputSampler, crew: Crew, advance: Callable[[int], object]) -> torch.Tensor:
    """What leaves the last block [sequences, length, width]; what enters each lies in the sampler's folder.

    Args:
        sampler: of the model.
        crew: runs the blocks.
        advance: told of each block done.
    """
    model, tokens, count = sampler.model, sampler.tokens, sampler.model.block_count
    runner = BatchRunner(model, tokens, sampler.batch)
    with model.shell():
        hidden = runner.map(lambda start, stop: model.embed(tokens[start:stop]))
    np.save(sampler.entering(0), hidden.float().numpy())
    context = crew.share(_context(sampler))
    for _block in crew.relay(open_outputs, context, range(count), _ForwardLeg(sampler), need=stage_bytes(model)):
        advance(1)
    last = sampler.entering(count)
    outputs = torch.from_numpy(np.load(last))
    last.unlink()
    return outputs


def relayed_back(sampler: InputSampler, crew: Crew, work: BlockWork) -> Iterator[Any]:
    """What `work` gives of every block, the last first, done where the block is."""
    leg, context = _BackwardLeg(sampler), crew.share((_context(sampler), work))
    stages = range(sampler.model.block_count)[::-1]
    for index in crew.relay(open_samples, context, stages, leg, need=_sample_bytes(sampler)):
        yield leg.results.pop(index)


def _context(sampler: InputSampler) -> BlockContext:
    return BlockContext.of(sampler.model, sampler.tokens, sampler.batch)


def _sample_bytes(sampler: InputSampler) -> int:
    """Memory of a stage: the block, twice, as what is changed is sent, and its samples."""
    specs = sampler.model.source.specs
    sides = sum(
        specs[name].rows + specs[name].columns
        for name in sampler.model.tensor_names(0)
        if name in specs and len(specs[name].shape) == 2
    )
    return 2 * stage_bytes(sampler.model) + _SAMPLE_BYTES * int(sampler.places.numel()) * sides
