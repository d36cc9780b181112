"""What enters each matrix at some tokens, and the loss's gradient there and behind it: block by block, the last first.

One forward pass keeps what enters each block on disk, one backward pass goes over the blocks, with labels drawn from
the model itself (`own_labels`). Tokens are kept one by one: a mean over them, as curvature is, hides that the tokens
with the largest activations are often those whose errors cost nothing. Costs are `refine.activations`'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgepack.progress import silent
from edgepack.quant.calibration.block_samples import BlockSamples, InputSample, joined_samples, watched_linears
from edgepack.quant.calibration.own_labels import gradient_at_logits, head_pieces, refuse_shared_keys
from edgepack.quant.calibration.sweep import BatchRunner, calibrated_model, sweep

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.crew import Crew
    from edgepack.model import Checkpoint
    from edgepack.progress import Progress
    from edgepack.quant.calibration.block_samples import BlockWork
    from edgepack.quant.calibration.blocks import Block
    from edgepack.quant.calibration.sweep import BlockVisit

SEQUENCES, TOKENS = 8, 1024
HEAD_ROWS = 512  # of the output matrix, whose outputs are too many to be kept


@dataclass(frozen=True)
class HeadSample:
    """The output matrix at some tokens.

    Attributes:
        inputs: float32 [tokens, in].
        gradients: at the inputs, float32 [tokens, in].
        rows: those with the largest gradients at their outputs, int64 [rows].
        outputs: gradients at their outputs, float32 [tokens, rows].
        share: the sum of squares of the gradients of all rows, over that of these.
    """

    inputs: torch.Tensor
    gradients: torch.Tensor
    rows: torch.Tensor
    outputs: torch.Tensor
    share: float


class InputSampler:
    """One walk back over a model; each of its parts is to be asked for once, the head first.

    Args:
        checkpoint: the model; not modified.
        tokens: [sequences, length]; some are taken, spread over all.
        folder: for what enters each block, float32; files go as they have been used.
        device: a torch device.
        batch: sequences at a time.
        seed: of the labels and of the tokens that are kept.
        progress: told of each block.
        crew: who runs the blocks, each on one worker; None for this process. The results are the same.

    Raises:
        UnsupportedModelError: layers that read what earlier ones keep.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens: NDArray[np.int64],
        folder: Path,
        *,
        device: str = "cpu",
        batch: int = 4,
        seed: int = 0,
        sequences: int = SEQUENCES,
        kept: int = TOKENS,
        progress: Progress = silent,
        crew: Crew | None = None,
    ) -> None:
        refuse_shared_keys(checkpoint.config)
        count, length = tokens.shape
        some = np.unique(np.linspace(0, count - 1, min(count, sequences)).astype(np.int64))
        self.tokens = torch.from_numpy(np.ascontiguousarray(tokens[some]))
        self.model, self.folder, self._progress = calibrated_model(checkpoint, device), folder, progress
        self._crew = crew
        self._generator = torch.Generator().manual_seed(seed)
        self.batch, self._runner = batch, BatchRunner(self.model, self.tokens, batch)
        each = max(1, min(length, kept // len(some)))
        self.places = torch.stack([torch.randperm(length, generator=self._generator)[:each] for _ in some])
        self.gradient = torch.empty(0)  # behind the block that comes next

    def head(self) -> HeadSample:
        """The forward pass, and the sample of the output matrix.

        Raises:
            NumericError: NaN or infinity.
        """
        last = self._forward()
        head, found = _Head(), []
        for rows, hidden in head_pieces(self.model, last, self.batch):
            with torch.enable_grad(), watched_linears({"": self.model.model.get_output_embeddings()}) as watch:
                logits = self.model.logits(hidden, self.tokens[rows])
            gradient = gradient_at_logits(logits, self._generator)
            samples, before = watch.back(logits, gradient, hidden, self.places[rows])
            head.add(samples[""])
            found.append(before)
        self.gradient = torch.cat(found)
        return head.result()

    def map(self, work: BlockWork) -> Iterator[Any]:
        """`work(block, samples)` of every block, the last first, as `blocks` gives them.

        Args:
            work: may change the block's weights; sent to the crew's workers, where there are any.

        Raises:
            NumericError: as `blocks`.
        """
        if self._crew is None:
            for block, samples in self.blocks():
                yield work(block, samples)
            return
        from edgepack.quant.calibration.input_relay import relayed_back

        count = self.model.block_count
        with self._progress("Gradients", count, " blocks") as advance:
            for result in relayed_back(self, self._crew, work):
                yield result
                advance(1)

    def blocks(self) -> Iterator[tuple[Block, dict[str, InputSample]]]:
        """Every block, the last first, with its weights loaded, and samples of its linears by checkpoint name.

        The weights may be changed: what comes later does not depend on it. Linears that see no whole sequences, as
        experts do, have no sample.

        Raises:
            NumericError: NaN or infinity; the text names the layer.
        """
        count = self.model.block_count
        with self._progress("Gradients", count, " blocks") as advance:
            for index in reversed(range(count)):
                path = self.entering(index)
                with self.model.block(index) as block:
                    yield block, self._back(block, np.load(path, mmap_mode="r"))
                path.unlink()
                advance(1)

    def _forward(self) -> torch.Tensor:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._crew is not None:
            from edgepack.quant.calibration.input_relay import relayed_forward

            with self._progress("Activations", self.model.block_count, " blocks") as advance:
                return relayed_forward(self, self._crew, advance)

        def keep(visit: BlockVisit) -> None:
            np.save(self.entering(visit.block.index), visit.inputs.float().numpy())

        return sweep(self.model, self.tokens, keep, batch=self.batch, progress=self._progress, label="Activations")

    def entering(self, index: int) -> Path:
        """The file of what enters a block, float32 [sequences, length, width]."""
        return self.folder / f"entering-{index}.npy"

    def _back(self, block: Block, entering: NDArray[np.float32]) -> dict[str, InputSample]:
        samples, before = BlockSamples(block), []
        for start in range(0, len(entering), self.batch):
            rows = slice(start, min(start + self.batch, len(entering)))
            hidden = torch.from_numpy(np.array(entering[rows]))
            before.append(samples.run(hidden, self.gradient[rows], self.places[rows], self._runner))
        self.gradient = torch.cat(before)
        return samples.joined()


class _Head:
    """Samples of the output matrix, cut to the rows that count at the first of them."""

    def __init__(self) -> None:
        self._parts: list[InputSample] = []
        self._rows = torch.empty(0, dtype=torch.int64)
        self._kept = self._all = 0.0

    def add(self, sample: InputSample) -> None:
        """Add a sample with the gradients at all outputs."""
        squares = sample.outputs.square().sum(0)
        if not self._parts:
            self._rows = squares.topk(min(HEAD_ROWS, len(squares))).indices
        self._kept += float(squares[self._rows].sum())
        self._all += float(squares.sum())
        self._parts.append(InputSample(sample.inputs, sample.gradients, sample.outputs[:, self._rows]))

    def result(self) -> HeadSample:
        """All of them; raises NumericError."""
        joined = joined_samples(self._parts, "the output matrix")
        share = self._all / self._kept if self._kept else 1.0
        return HeadSample(joined.inputs, joined.gradients, self._rows, joined.outputs, share)
