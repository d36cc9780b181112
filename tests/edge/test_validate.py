"""A validation finds what differs, says where, and its gates look at the end of the interval that is against it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from references.scorers_of_arrays import LetterTokenizer, TableScorer

from edgepack.edge.fidelity.context import usable_context
from edgepack.edge.fidelity.gates import Gates
from edgepack.edge.fidelity.outcome import as_json, as_lines
from edgepack.edge.fidelity.scorers.scorer import Chunk, Chunking
from edgepack.edge.fidelity.validate import validate
from edgepack.errors import CheckFailedError, NumericError, UsageError

TEXT = "".join(random.Random(5).choices("abcdefghijklmnopqrstuvwxyz ,.", k=4000))
CHUNKING = Chunking(64)


def test_identical_models_agree_everywhere_and_do_not_diverge() -> None:
    (found,) = validate(TableScorer(), [TableScorer()], TEXT, CHUNKING)
    assert found.statistics.agreement.mean == 1
    assert found.statistics.divergence.mean <= 1e-6
    assert found.first_clear is None
    assert found.statistics.tokens == CHUNKING.scored(len(TEXT) + 1)


def test_every_candidate_is_measured_on_its_own() -> None:
    together = validate(TableScorer(), [TableScorer(noise=0.1), TableScorer(noise=0.5)], TEXT, CHUNKING)
    for noise, found in zip((0.1, 0.5), together, strict=True):
        (alone,) = validate(TableScorer(), [TableScorer(noise=noise)], TEXT, CHUNKING)
        assert alone.statistics.divergence.mean == found.statistics.divergence.mean
    assert together[0].statistics.divergence.mean < together[1].statistics.divergence.mean


def test_gates_look_at_the_unfavourable_end_of_the_interval() -> None:
    (found,) = validate(TableScorer(), [TableScorer(noise=0.2)], TEXT, CHUNKING)
    mean = found.statistics.agreement.mean
    low, _high = found.statistics.agreement.share_interval()
    assert low < mean < 1
    assert found.passed(Gates(min_agreement=low - 1e-9))
    assert not found.passed(Gates(min_agreement=(low + mean) / 2))
    _low, high = found.statistics.divergence.interval()
    assert found.passed(Gates(max_kl=high + 1e-9))
    assert not found.passed(Gates(max_kl=(high + found.statistics.divergence.mean) / 2))
    failed = [gate.name for gate in found.gate_results(Gates(1.0, 1e-9, 0.5)) if not gate.passed]
    assert failed == ["min-agreement", "max-kl", "max-perplexity-ratio"]


def test_another_tokenizer_fails_and_says_at_which_id() -> None:
    other = TableScorer(tokenizer=LetterTokenizer(shift=1))
    (found,) = validate(TableScorer(), [other], TEXT, CHUNKING)
    assert found.tokens_differ is not None
    assert found.tokens_differ.position == 1
    assert not found.passed(Gates())
    assert "tokenizers differ at token 1" in found.gate_results(Gates())[0].detail


def test_a_dropped_bos_fails_at_the_first_token() -> None:
    (found,) = validate(TableScorer(), [TableScorer(tokenizer=LetterTokenizer(bos=None))], TEXT, CHUNKING)
    assert found.tokens_differ is not None
    assert found.tokens_differ.position == 0
    assert not found.passed(Gates())


def test_the_worst_tokens_are_the_most_divergent_with_their_place() -> None:
    (found,) = validate(TableScorer(), [TableScorer(noise=1.0)], TEXT, CHUNKING)
    divergences = [token.divergence for token in found.worst]
    assert divergences == sorted(divergences, reverse=True)
    assert divergences[0] == found.statistics.histogram.maximum
    ids = TableScorer().tokenizer.tokenize(TEXT)
    for token in found.worst:
        assert ids[token.position] == token.target
        assert ids[token.position - 1] == token.context[-1]
    assert found.first_clear is not None
    assert found.first_clear.reference != found.first_clear.candidate


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_nan_logits_are_an_error_with_their_position_in_the_text(side: str) -> None:
    scorers = {"reference": TableScorer(), "candidate": TableScorer()}
    scorers[side].broken_at = 64 * 5 + 40
    with pytest.raises(NumericError, match=f"{side}.*position 360, token 3"):
        validate(scorers["reference"], [scorers["candidate"]], TEXT, CHUNKING)


def test_a_chunk_longer_than_a_context_names_the_model_and_its_limit() -> None:
    with pytest.raises(UsageError, match="small: chunks of 64 tokens, but its context is 32"):
        validate(TableScorer(), [TableScorer(label="small", context_limit=32)], TEXT, CHUNKING)


def test_vocabularies_of_different_size_are_refused() -> None:
    with pytest.raises(CheckFailedError, match="reference 64, candidate 65"):
        validate(TableScorer(), [TableScorer(vocabulary=65)], TEXT, CHUNKING)


@pytest.mark.parametrize("gates", [{"min_agreement": 0.0}, {"min_agreement": 1.5}, {"max_kl": -1.0}])
def test_senseless_gates_are_refused(gates: dict) -> None:
    with pytest.raises(UsageError, match="expected"):
        Gates(**gates)


def test_json_has_the_contracts_keys_and_no_number_that_json_cannot_hold() -> None:
    (found,) = validate(TableScorer(), [TableScorer()], TEXT, Chunking(64, max_chunks=1))
    told = as_json(found, Gates(0.5), CHUNKING)
    assert {"tokens", "top1_agreement", "top1_interval", "mean_kl", "kl_quantiles", "perplexity", "passed"} <= set(told)
    assert {"reference", "candidate"} <= set(told["perplexity"])
    assert told["mean_kl_interval"] == [None, None]  # one chunk tells nothing of the spread between chunks
    assert any("top-1 agreement" in line for line in as_lines(found))


class Forgetful(TableScorer):
    """Predicts well up to 130 tokens of context and noisily beyond."""

    def score(self, chunk: Chunk) -> np.ndarray:
        logits = np.zeros((chunk.scored, VOCABULARY), np.float32)
        logits[np.arange(chunk.scored), chunk.scored_targets] = 3
        positions = np.arange(chunk.first, len(chunk.tokens) - 1)
        logits[positions > 130] = 0
        return logits


VOCABULARY = 64


def test_chunks_are_no_longer_than_what_the_reference_makes_use_of() -> None:
    tokens = TableScorer().tokenizer.tokenize(TEXT)
    assert usable_context(TableScorer(), tokens) == 512
    assert usable_context(TableScorer(context_limit=256), tokens) == 256
    assert usable_context(Forgetful(), tokens) == 128
    assert usable_context(TableScorer(), tokens[:200]) == 128
