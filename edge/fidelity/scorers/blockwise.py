"""Scores text with a checkpoint larger than memory: one transformer block is loaded at a time. Publishers' side.

How a model is run by blocks is `quant.calibration.blocks`' business; this runs many chunks through each block, so
that the weights are read once a batch and not once a chunk.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from edgepack.edge.fidelity.scorers.scorer import Chunk, Tokenizer
    from edgepack.quant.calibration.blocks import BlockwiseModel

_HIDDEN_BYTES = 1 << 30  # of all activations that wait between two blocks
_TOGETHER = 4  # chunks in one matrix product


class BlockwiseScorer:
    """A checkpoint in float32 that is never in memory as a whole.

    Args:
        model: the checkpoint.
        tokenizer: its tokenizer.
        label: for people.
        batch: chunks that pass through a block before the next one is read; 0 is as many as 1 GiB of activations.
    """

    def __init__(self, model: BlockwiseModel, tokenizer: Tokenizer, label: str, batch: int = 0) -> None:
        self._model = model
        self._batch = batch
        self.tokenizer = tokenizer
        self.label = label

    @property
    def vocabulary(self) -> int:
        """Width of a row of logits."""
        return int(self._model.model.get_output_embeddings().weight.shape[0])

    @property
    def context_limit(self) -> int:
        """The context that the model was trained with."""
        limit: int | None = getattr(self._model.model.config.get_text_config(), "max_position_embeddings", None)
        return limit or 1 << 30

    def batch_size(self, ctx: int) -> int:
        """How many chunks of `ctx` tokens pass through each block together."""
        width = int(self._model.model.get_input_embeddings().weight.shape[1])
        return self._batch or max(1, _HIDDEN_BYTES // (4 * ctx * width))

    def score(self, chunk: Chunk) -> NDArray[np.float32]:
        """Logits [chunk.scored, vocabulary] of one chunk; reads the whole checkpoint for it."""
        return next(self.score_batch([chunk]))

    def score_batch(self, chunks: Sequence[Chunk]) -> Iterator[NDArray[np.float32]]:
        """Logits of each chunk in their order; the checkpoint is read once for all of them, whatever their lengths."""
        parts = [part for same in _equally_long(chunks) for part in same.split(_TOGETHER)]
        hidden = self._through_blocks(parts)
        rows = (
            (state, row)
            for states, part in zip(hidden, parts, strict=True)
            for state, row in zip(states, part, strict=True)
        )
        with self._model.shell():
            for chunk, (state, row) in zip(chunks, rows, strict=True):
                yield self._logits(state, row)[chunk.first : -1]

    def _through_blocks(self, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        """What leaves the last block, [chunks, length, width] a part."""
        shapes = {part.shape: part for part in parts}
        with torch.inference_mode():
            with self._model.shell():
                hidden = [self._model.embed(part) for part in parts]
                calls = {shape: self._model.calls(part) for shape, part in shapes.items()}
            for index in range(self._model.block_count):
                with self._model.block(index) as block:
                    hidden = [
                        block.run(states, calls[part.shape][index]) for states, part in zip(hidden, parts, strict=True)
                    ]
        return hidden

    def _logits(self, state: torch.Tensor, row: torch.Tensor) -> NDArray[np.float32]:
        """Of one chunk, [length, vocabulary]."""
        with torch.inference_mode():  # not between two chunks: their reader may use torch too
            logits: NDArray[np.float32] = self._model.logits(state[None], row[None])[0].float().numpy()
        return logits

    def close(self) -> None:
        """Nothing is held between batches."""


def _equally_long(chunks: Sequence[Chunk]) -> Iterator[torch.Tensor]:
    """Neighbours of one length, int64 [chunks, length]."""
    for _length, same in groupby(chunks, key=lambda chunk: len(chunk.tokens)):
        yield torch.from_numpy(np.stack([chunk.tokens for chunk in same]).astype(np.int64))
