"""Curvature measured by a crew: each block is one stage of a relay, forwards and then backwards.

A stage sees all sequences in batches and in order, as `curvature` does in one process, so that its sums are the same to
the bit; activations and gradients travel and lie on the asker's disk, as they do there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from edgepack.quant.calibration.block_sums import BackwardSums, ForwardSums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.quant.calibration.block_context import BlockContext
    from edgepack.quant.calibration.curvature_progress import CurvatureProgress


class BlockStage:
    """A loaded block on a worker.

    Args:
        context: the model, which stays on the worker for its next block.
        number: of the block.
    """

    def __init__(self, context: BlockContext, number: int) -> None:
        self.context, self.block = context, context.block(number)

    def close(self) -> None:
        """Drop the block's weights."""
        self.context.drop()


class ForwardStage(BlockStage):
    """H of a block."""

    def __init__(self, context: BlockContext, number: int) -> None:
        super().__init__(context, number)
        self._sums = ForwardSums(context.model.source, self.block)

    def step(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """A batch of what enters the block → what leaves it, [sequences, length, width]."""
        return np.asarray(self._sums.run(torch.from_numpy(np.array(hidden)), self.context.runner).detach().numpy())

    def finish(self) -> dict[str, NDArray[np.float32] | None]:
        """Checkpoint name → H; names that share an input have one array."""
        return self._sums.hessians()


class BackwardStage(BlockStage):
    """G of a block."""

    def __init__(self, context: BlockContext, number: int) -> None:
        super().__init__(context, number)
        self._sums = BackwardSums(self.block)

    def step(self, entering: NDArray[np.float32], after: NDArray[np.float32]) -> NDArray[np.float32]:
        """A batch of what enters the block and of the gradient after it → the gradient before it."""
        before = self._sums.run(
            torch.from_numpy(np.array(entering)), torch.from_numpy(np.array(after)), self.context.runner
        )
        return np.asarray(before.numpy())

    def finish(self) -> BackwardSums:
        """The sums, without the block."""
        return self._sums.alone()


def open_forward(context: BlockContext, number: int) -> ForwardStage:
    """A stage of the way forwards, on a worker."""
    return ForwardStage(context, number)


def open_backward(context: BlockContext, number: int) -> BackwardStage:
    """A stage of the way backwards, on a worker."""
    return BackwardStage(context, number)


class Filling(Protocol):
    """A folder that holds arrays while they fill."""

    def filling(self, shape: tuple[int, ...], number: int) -> NDArray[np.float32]:
        """A new array on disk, float32, to be filled piece by piece."""
        ...


class ActivationFiles:
    """What leaves one stage and enters the next: an array on disk that fills batch by batch.

    Args:
        kept: the run's folder.
        batch: sequences at a time.
        count: sequences in all.
    """

    def __init__(self, kept: Filling, batch: int, count: int) -> None:
        self._files, self.batch, self.count = kept, batch, count
        self._open: dict[int, Any] = {}

    @property
    def steps(self) -> int:
        """Batches."""
        return -(-self.count // self.batch)

    def rows(self, step: int) -> slice:
        """The sequences of a batch."""
        return slice(step * self.batch, min((step + 1) * self.batch, self.count))

    def put(self, number: int, step: int, output: NDArray[np.float32]) -> None:
        """Keep a batch of array `number`; the same again changes nothing."""
        if number not in self._open:
            self._open[number] = self._files.filling((self.count, *output.shape[1:]), number)
        self._open[number][self.rows(step)] = output

    def get(self, number: int, step: int) -> NDArray[np.float32] | None:
        """A batch of an array that is being filled; None where it is not."""
        found = self._open.get(number)
        return None if found is None else np.array(found[self.rows(step)])

    def whole(self, number: int) -> NDArray[np.float32]:
        """An array that is filled."""
        found: NDArray[np.float32] = self._open.pop(number)
        found.flush()  # type: ignore[attr-defined]  # a map of the file
        return found


class ForwardLeg(ActivationFiles):
    """From block to block, forwards; what enters every block is kept, and its H.

    Attributes:
        last: what left the last block, [sequences, length, width].
    """

    def __init__(self, kept: CurvatureProgress, batch: int, count: int, blocks: int) -> None:
        super().__init__(kept, batch, count)
        self.kept, self._blocks = kept, blocks
        self.last: torch.Tensor | None = None

    def feed(self, stage: int, step: int) -> tuple[NDArray[np.float32]]:
        """As `edgepack.crew.Leg.feed`."""
        found = self.get(stage, step)
        return (np.array(self.kept.entering(stage)[self.rows(step)]) if found is None else found,)

    def took(self, stage: int, step: int, output: NDArray[np.float32]) -> None:
        """As `edgepack.crew.Leg.took`."""
        self.put(stage + 1, step, output)

    def finished(self, stage: int, result: dict[str, NDArray[np.float32] | None]) -> None:
        """As `edgepack.crew.Leg.finished`: H first, then what enters the next block, as a resumed run looks for it."""
        self.kept.moments(stage, result)
        outputs = self.whole(stage + 1)
        if stage + 1 == self._blocks:
            self.last = torch.from_numpy(np.array(outputs))
            self.kept.drop_filling(stage + 1)
        else:
            self.kept.filled(stage + 1)


class BackwardLeg(ActivationFiles):
    """From block to block, backwards over every `stride`-th sequence.

    Attributes:
        sums: of blocks that are done, to be taken.
    """

    def __init__(self, kept: CurvatureProgress, batch: int, count: int, stride: int) -> None:
        super().__init__(kept, batch, count)
        self.kept, self._stride = kept, stride
        self.sums: dict[int, BackwardSums] = {}

    def feed(self, stage: int, step: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As `edgepack.crew.Leg.feed`."""
        found, rows = self.get(stage + 1, step), self.rows(step)
        after = np.array(self.kept.gradient(stage + 1)[rows]) if found is None else found
        return np.array(self.kept.entering(stage)[:: self._stride][rows]), after

    def took(self, stage: int, step: int, output: NDArray[np.float32]) -> None:
        """As `edgepack.crew.Leg.took`."""
        self.put(stage, step, output)

    def finished(self, stage: int, result: BackwardSums) -> None:
        """As `edgepack.crew.Leg.finished`."""
        self.sums[stage] = result

    def went_back(self, stage: int) -> None:
        """What a block gave is kept: so is the gradient at its inputs, from which a resumed run goes on."""
        self.kept.went_back(stage, torch.from_numpy(np.array(self.whole(stage))))
        self.kept.drop_filling(stage)
