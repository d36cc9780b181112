"""A stored reference is small, measures what the logits measure, and hostile bytes end in one line."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references.scorers_of_arrays import VOCABULARY, LetterTokenizer, TableScorer

from edgepack.edge.fidelity.certificate import kept_tokens, replay, store
from edgepack.edge.fidelity.scorers.scorer import Chunking
from edgepack.edge.fidelity.scorers.stored import StoredScorer
from edgepack.edge.fidelity.stored_reference import DIGEST_BYTES, HEAD, MAGIC, decode, encode
from edgepack.edge.fidelity.validate import validate
from edgepack.errors import ArchiveError, CheckFailedError, EdgepackError, IntegrityError, UsageError

TEXT = "".join(chr(97 + (i * i * 7 + i // 3) % 26) for i in range(4000))
CHUNKING = Chunking(64, max_chunks=20)
FACTS = {"text_sha256": hashlib.sha256(TEXT.encode()).hexdigest(), "note": "é"}


def stored(noise: float = 0.3) -> bytes:
    return encode(store(TableScorer(), TableScorer(noise=noise), TEXT, CHUNKING, FACTS))


def test_bytes_restore_what_was_stored_within_the_step() -> None:
    before = store(TableScorer(), TableScorer(noise=0.3), TEXT, CHUNKING, FACTS)
    after = decode(encode(before), "x")
    np.testing.assert_array_equal(after.tokens, before.tokens)
    np.testing.assert_array_equal(after.reference.ids, before.reference.ids)
    np.testing.assert_array_equal(after.candidate_top, before.candidate_top)
    for ours, theirs in (
        (after.reference.log_probabilities, before.reference.log_probabilities),
        (after.reference.target, before.reference.target),
        (after.candidate_target, before.candidate_target),
    ):
        np.testing.assert_allclose(ours, theirs, atol=1.5 / 2048)
    np.testing.assert_allclose(after.reference.tail, before.reference.tail, rtol=2e-3)
    assert after.facts == FACTS
    assert (after.first, after.bos) == (32, 1)


def test_stored_distributions_add_up_to_one() -> None:
    kept = decode(stored(), "x").reference
    np.testing.assert_allclose(np.exp(kept.log_probabilities).sum(axis=1) + kept.tail, 1, atol=1e-12)


def test_the_stored_reference_measures_what_the_model_measures() -> None:
    candidate = TableScorer(noise=0.4)
    (whole,) = validate(TableScorer(), [candidate], TEXT, CHUNKING)
    (kept,) = validate(StoredScorer(decode(stored(), "x"), "stored"), [candidate], TEXT, CHUNKING)
    assert kept.statistics.agreement.mean == whole.statistics.agreement.mean
    assert kept.statistics.divergence.mean <= whole.statistics.divergence.mean * 1.001
    assert kept.statistics.divergence.mean > 0.5 * whole.statistics.divergence.mean
    assert kept.statistics.reference_loss.mean == pytest.approx(whole.statistics.reference_loss.mean, abs=1e-3)
    assert kept.tokens_differ is None


def test_the_same_file_is_reproduced_and_another_is_not() -> None:
    kept = decode(stored(0.3), "x")
    same = replay(kept, TableScorer(noise=0.3))
    assert same.reproduced
    assert same.same_choice == 1
    assert same.log_probability_change < 1e-3
    assert same.validation.statistics.divergence.mean == pytest.approx(same.publisher_kl, rel=1e-2)
    other = replay(kept, TableScorer(noise=1.5))
    assert not other.reproduced
    assert "does NOT reproduce" in str(other)


def test_a_replay_keeps_to_its_time_and_scores_at_least_a_chunk() -> None:
    result = replay(decode(stored(), "x"), TableScorer(noise=0.3), seconds=0.0)
    assert result.validation.chunks == 1
    assert result.reproduced


def test_another_text_chunking_or_model_is_refused_with_digests() -> None:
    scorer = StoredScorer(decode(stored(), "x"), "stored")
    with pytest.raises(UsageError, match="made on another text: SHA-256 .*, got "):
        validate(scorer, [TableScorer()], TEXT + "x", CHUNKING)
    with pytest.raises(UsageError, match="chunks of 128 tokens, but its context is 64"):
        validate(scorer, [TableScorer()], TEXT, Chunking(128))
    with pytest.raises(UsageError, match="stored from position 32 on"):
        validate(scorer, [TableScorer()], TEXT, Chunking(64, 63, 1))
    with pytest.raises(CheckFailedError, match="made for another model: vocabulary 64, got 65"):
        replay(scorer.stored, TableScorer(vocabulary=65))


def test_a_candidate_with_another_tokenizer_differs_from_the_store_too() -> None:
    scorer = StoredScorer(decode(stored(), "x"), "stored")
    (found,) = validate(scorer, [TableScorer(tokenizer=LetterTokenizer(shift=1))], TEXT, CHUNKING)
    assert found.tokens_differ is not None
    assert found.tokens_differ.position == 1


@pytest.mark.parametrize("vocabulary", [1, 2, 512, 4096, 32_000, 128_256, 256_000])
def test_what_is_kept_stays_below_the_limits(vocabulary: int) -> None:
    k = kept_tokens(vocabulary)
    assert 1 <= k <= vocabulary
    assert k * 4 + 12 <= 300  # bytes of a position before compression where ids take two bytes


def test_every_flipped_byte_and_every_truncation_is_found() -> None:
    raw = stored()
    for at in range(0, len(raw), 37):
        broken = bytearray(raw)
        broken[at] ^= 0x10
        with pytest.raises((ArchiveError, IntegrityError)):
            decode(bytes(broken), "x")
        with pytest.raises(ArchiveError):
            decode(raw[:at], "x")


def forged(header: object, body: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = HEAD.pack(MAGIC, len(raw), len(body)) + raw + body
    return content + hashlib.sha256(content).digest()


GOOD = {"chunks": 1, "ctx": 8, "first": 4, "k": 2, "vocabulary": 16, "bos": None}


@pytest.mark.parametrize(
    "header",
    [b"{", [1], {}, {**GOOD, "k": 0}, {**GOOD, "k": 17}, {**GOOD, "k": True}, {**GOOD, "first": 7}, {**GOOD, "bos": 16},
     {**GOOD, "chunks": 1 << 30}, {**GOOD, "ctx": 1 << 31}, {**GOOD, "vocabulary": -1}, GOOD],
)  # fmt: skip
def test_forged_headers_with_a_right_digest_are_refused(header: object) -> None:
    with pytest.raises(ArchiveError, match="^x: "):
        decode(forged(header), "x")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.fixed_dictionaries({}, optional={k: st.integers(-2, 70_000) for k in GOOD}))
def test_no_forgery_ends_in_anything_but_a_stated_error(body: bytes, changes: dict) -> None:
    try:
        decode(forged({**GOOD, **changes}, body), "x")
    except EdgepackError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_the_head_has_the_documented_size() -> None:
    assert HEAD.size == 20
    assert DIGEST_BYTES == 32
    assert VOCABULARY == 64
