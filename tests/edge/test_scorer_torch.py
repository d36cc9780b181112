"""The reference: its own samples are the same on every run, nothing reaches the terminal, wrong folders are stated."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgepack.edge.fidelity.scorers.torch import TorchScorer
from edgepack.edge.fidelity.scoring import ScoringOptions, sample_text
from edgepack.errors import CheckpointError, TokenizerError, UsageError
from edgepack.pipeline.fidelity import open_reference

if TYPE_CHECKING:
    from pathlib import Path


def test_samples_are_the_same_on_every_run_and_differ_by_seed(books: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with closing(TorchScorer(books)) as scorer:
        first = scorer.sample(3, 24)
        assert first == scorer.sample(3, 24)
        assert first != scorer.sample(3, 24, seed=1)
        assert first.count("\n\n") >= 2
        assert "<|" not in first
    assert capfd.readouterr() == ("", "")


def test_greedy_continuation_takes_the_argmax_of_the_scores(books: Path) -> None:
    from edgepack.edge.fidelity.scorers.scorer import Chunk

    with closing(TorchScorer(books)) as scorer:
        prompt = scorer.tokenizer.tokenize("The old man looked at the sea and")
        written = scorer.continue_greedily(prompt, 6)
        whole = np.concatenate([prompt, written]).astype(np.int32)
        logits = scorer.score(Chunk(0, 0, whole, whole[1:], len(prompt) - 1))
        np.testing.assert_array_equal(logits.argmax(axis=1), written)


def test_lower_precision_is_near_but_not_equal(books: Path) -> None:
    from edgepack.edge.fidelity.scorers.scorer import Chunk

    with closing(TorchScorer(books)) as exact, closing(exact.in_precision("bfloat16")) as rounded:
        tokens = exact.tokenizer.tokenize("The old man looked at the sea and said nothing at all.")
        chunk = Chunk(0, 0, tokens, tokens[1:], 0)
        difference = np.abs(exact.score(chunk) - rounded.score(chunk)).max()
        assert 0 < difference < 1


def test_folders_that_are_no_checkpoint_are_one_line(tmp_path: Path) -> None:
    with pytest.raises((CheckpointError, TokenizerError), match="transformers cannot read it") as caught:
        TorchScorer(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_cannot_write_asks_for_a_text(books: Path) -> None:
    with (
        closing(open_reference(books, ScoringOptions(blockwise=True))) as blocks,
        pytest.raises(UsageError, match="give some with --text"),
    ):
        sample_text(blocks)
