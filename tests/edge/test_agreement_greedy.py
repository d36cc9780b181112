"""Greedy agreement ends where two models that really write on their own part."""

from __future__ import annotations

import numpy as np
import pytest
from references.scorers_of_arrays import TableScorer

from edgepack.edge.fidelity.greedy import greedy_agreement
from edgepack.edge.fidelity.scorers.scorer import Chunk, Chunking

TEXT = "".join(chr(97 + (i * i) % 26) for i in range(600))
CHUNKING = Chunking(64)


class Writing(TableScorer):
    """A table that also writes, one full evaluation a token."""

    def continue_greedily(self, tokens: np.ndarray, count: int) -> np.ndarray:
        written = list(tokens)
        for _ in range(count):
            read = np.array([*written, 0], np.int32)
            written.append(int(self.score(Chunk(0, 0, read, read[1:], len(read) - 2))[-1].argmax()))
        return np.array(written[len(tokens) :], np.int32)


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.5, 1.0, 3.0])
def test_the_length_is_that_of_two_models_writing_on_their_own(noise: float) -> None:
    reference, candidate = Writing(), Writing(noise=noise)
    tokens = reference.tokenizer.tokenize(TEXT)
    (found,) = greedy_agreement(reference, [candidate], tokens, CHUNKING, prompts=4, new_tokens=20)
    assert found is not None
    starts = np.linspace(0, len(tokens) - 44, 4).astype(int)
    for start, parting in zip(starts, found.partings, strict=True):
        prompt = np.array(tokens[start : start + 44])
        prompt[0] = 1
        ours, theirs = reference.continue_greedily(prompt, 20), candidate.continue_greedily(prompt, 20)
        alike = int(np.cumprod(ours == theirs).sum())
        assert parting.length == alike
        assert (parting.margin is None) == (alike == 20)
        if parting.margin is not None:
            assert (parting.reference, parting.candidate) == (ours[alike], theirs[alike])
            assert parting.margin >= 0
    assert found.never + sum(parting.margin is not None for parting in found.partings) == 4
    assert 0 <= found.narrow <= 4 - found.never


def test_a_reference_that_cannot_write_is_not_measured() -> None:
    tokens = TableScorer().tokenizer.tokenize(TEXT)
    assert greedy_agreement(TableScorer(), [TableScorer()], tokens, CHUNKING) == [None]
    assert greedy_agreement(Writing(), [TableScorer()], tokens, CHUNKING, prompts=0) == [None]
