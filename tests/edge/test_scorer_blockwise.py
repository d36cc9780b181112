"""A checkpoint read block by block gives the logits of the whole model, reading its weights once a batch."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest
from blocks_entered import blocks_entered

from edgepack.edge.fidelity.predictions import predictions
from edgepack.edge.fidelity.scorers.scorer import Chunking
from edgepack.edge.fidelity.scoring import ScoringOptions
from edgepack.edge.fidelity.validate import validate
from edgepack.pipeline.fidelity import open_reference

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals. " * 12


@pytest.mark.parametrize("stride", [None, 10])
def test_blocks_give_the_whole_models_logits(books: Path, stride: int | None) -> None:
    chunking = Chunking(32, stride)
    with (
        closing(open_reference(books, ScoringOptions(blockwise=True))) as blocks,
        closing(open_reference(books, ScoringOptions(blockwise=False))) as whole,
    ):
        assert blocks.vocabulary == whole.vocabulary
        assert blocks.context_limit == whole.context_limit
        tokens = whole.tokenizer.tokenize(TEXT)
        pairs = zip(
            predictions(blocks, chunking.chunks(tokens, whole.tokenizer.bos)),
            predictions(whole, chunking.chunks(tokens, whole.tokenizer.bos)),
            strict=True,
        )
        for (chunk, ours), (other, theirs) in pairs:
            assert chunk.index == other.index
            np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_weights_are_read_once_a_batch_not_once_a_chunk(books: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(open_reference(books, ScoringOptions(blockwise=True))) as blocks:
        model = blocks._model
        entered = blocks_entered(model, monkeypatch)
        with closing(open_reference(books, ScoringOptions(blockwise=False))) as whole:
            (found,) = validate(blocks, [whole], TEXT, Chunking(32))
        assert found.chunks > 6
        assert entered == list(range(model.block_count))
        assert found.statistics.agreement.mean == 1
        assert found.statistics.divergence.mean < 1e-6
