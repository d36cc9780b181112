"""Chunks are cut as llama.cpp's perplexity tool cuts them; a sliding window scores every token once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.edge.fidelity.scorers.scorer import Chunking
from edgepack.errors import UsageError


def test_chunks_are_those_of_llama_cpps_perplexity_tool() -> None:
    """perplexity.cpp: first = n_ctx / 2; positions first … n_ctx − 2 are scored; BOS stands at position 0."""
    tokens = np.arange(100, 135, dtype=np.int32)
    chunks = list(Chunking(10).chunks(tokens, bos=1))
    assert [chunk.start for chunk in chunks] == [0, 10, 20]  # the last five tokens are left out
    second = chunks[1]
    assert second.tokens.tolist() == [1, *range(111, 120)]
    assert second.first == 5
    assert second.scored_targets.tolist() == [116, 117, 118, 119]
    assert Chunking(10).scored(35) == sum(chunk.scored for chunk in chunks)


@given(st.integers(4, 40), st.data())
def test_a_sliding_window_scores_every_token_but_the_first_once(ctx: int, data: st.DataObject) -> None:
    stride, length = data.draw(st.integers(1, ctx - 1)), data.draw(st.integers(ctx, 200))
    tokens = np.arange(length, dtype=np.int32)
    chunking = Chunking(ctx, stride)
    scored = [token for chunk in chunking.chunks(tokens, None) for token in chunk.scored_targets.tolist()]
    assert scored == list(range(1, length))
    assert chunking.scored(length) == length - 1


@given(st.integers(4, 40), st.integers(1, 3), st.integers(0, 200))
def test_the_number_of_scored_tokens_is_known_before(ctx: int, most: int, extra: int) -> None:
    for stride in (None, ctx // 2):
        chunking = Chunking(ctx, stride, most)
        tokens = np.zeros(ctx + extra, np.int32)
        assert chunking.scored(len(tokens)) == sum(chunk.scored for chunk in chunking.chunks(tokens, 1))


def test_a_text_shorter_than_one_chunk_says_both_lengths() -> None:
    with pytest.raises(UsageError, match="text has 9 tokens, a chunk needs 10"):
        Chunking(10).count(9)


@pytest.mark.parametrize("arguments", [(3,), (16, 16), (16, 0), (16, None, 0)])
def test_senseless_chunkings_are_refused(arguments: tuple) -> None:
    with pytest.raises(UsageError, match="expected"):
        Chunking(*arguments)
