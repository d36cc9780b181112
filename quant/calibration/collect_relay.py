"""Statistics of linear layers measured by a crew: each block is one stage of a relay and sees the batches in order.

Sums are those of `collect` in one process, to the bit; activations between two blocks lie in a folder meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.files.arrays import new_array
from edgepack.quant.calibration.curvature_relay import ActivationFiles, BlockStage
from edgepack.quant.calibration.sweep import InputWatch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.quant.calibration.block_context import BlockContext
    from edgepack.quant.calibration.statistics import LinearStatistics


class StatisticsStage(BlockStage):
    """The moments of what enters a block's linears.

    Args:
        context: the model, and whether H is wanted.
        number: of the block.
    """

    def __init__(self, context: tuple[BlockContext, bool], number: int) -> None:
        super().__init__(context[0], number)
        self._watch = InputWatch(self.block.linears, context[1])

    def step(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """A batch of what enters the block → what leaves it, [sequences, length, width]."""
        entering = torch.from_numpy(np.array(hidden)).to(self.context.model.device)
        with self._watch.on():
            outputs = self.block.run(entering, self.context.runner.calls(len(entering))[self.block.index])
        return np.asarray(outputs.cpu().detach().numpy())

    def finish(self) -> dict[str, LinearStatistics]:
        """The statistics by linear; those of a shared input are one value. Raises NumericError."""
        return self._watch.results()


def open_statistics(context: tuple[BlockContext, bool], number: int) -> StatisticsStage:
    """A stage, on a worker."""
    return StatisticsStage(context, number)


class FillingFolder:
    """Arrays that fill piece by piece, in a folder of one relay.

    Args:
        folder: exists.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def filling(self, shape: tuple[int, ...], number: int) -> NDArray[np.float32]:
        """A new array on disk, float32."""
        made: NDArray[np.float32] = new_array(self._folder / f"filling-{number}.npy", np.float32, shape)
        return made

    def drop_filling(self, number: int) -> None:
        """An array is not needed any more."""
        (self._folder / f"filling-{number}.npy").unlink(missing_ok=True)


class StatisticsLeg(ActivationFiles):
    """From block to block.

    Args:
        folder: for activations.
        entering: what enters the first stage, [sequences, length, width].
        batch: sequences at a time.
        first: the first stage.
        keep: called with a block's number, statistics and outputs when it is done.

    Attributes:
        last: what left the last stage that is done.
    """

    def __init__(
        self,
        folder: FillingFolder,
        entering: torch.Tensor,
        batch: int,
        first: int,
        keep: Callable[[int, dict[str, LinearStatistics], NDArray[np.float32]], None],
    ) -> None:
        super().__init__(folder, batch, len(entering))
        self._folder, self._first, self._keep = folder, first, keep
        self._entering = {first: np.asarray(entering.numpy())}

    @property
    def last(self) -> torch.Tensor:
        """What left the last stage that is done, [sequences, length, width]."""
        return torch.from_numpy(np.array(self._entering[max(self._entering)]))

    def feed(self, stage: int, step: int) -> tuple[NDArray[np.float32]]:
        """As `edgepack.crew.Leg.feed`."""
        found = self.get(stage, step)
        return (np.array(self._entering[stage][self.rows(step)]) if found is None else found,)

    def took(self, stage: int, step: int, output: NDArray[np.float32]) -> None:
        """As `edgepack.crew.Leg.took`."""
        self.put(stage + 1, step, output)

    def finished(self, stage: int, result: dict[str, LinearStatistics]) -> None:
        """As `edgepack.crew.Leg.finished`."""
        self._entering[stage + 1] = self.whole(stage + 1)
        self._keep(stage, result, self._entering[stage + 1])
        self._entering.pop(stage)
        if stage > self._first:
            self._folder.drop_filling(stage)
