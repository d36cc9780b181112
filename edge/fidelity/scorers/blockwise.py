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
        """Logits of each chunk in their order; the checkpoint is read once for all of the same length."""
        for _length, same in groupby(chunks, key=lambda chunk: len(chunk.tokens)):
            yield from self._score_equal(list(same))

    def _score_equal(self, chunks: list[Chunk]) -> Iterator[NDArray[np.float32]]:
        tokens = torch.from_numpy(np.stack([chunk.tokens for chunk in chunks]).astype(np.int64))
        with torch.inference_mode():
            parts = tokens.split(_TOGETHER)
            hidden = [self._model.embed(part) for part in parts]
            calls = {len(part): self._model.calls(part) for part in parts}
            for index in range(self._model.block_count):
                with self._model.block(index) as block:
                    hidden = [block.run(states, calls[len(states)][index]) for states in hidden]
            rows = [state[None] for states in hidden for state in states]
            with self._model.shell():
                for chunk, row, state in zip(chunks, tokens, rows, strict=True):
                    logits = self._model.logits(state, row[None])[0, chunk.first : -1]
                    kept: NDArray[np.float32] = logits.float().numpy()
                    yield kept

    def close(self) -> None:
        """Nothing is held between batches."""
