"""What is kept of an original says what it said, and an interrupted run goes on where it was."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.edge.fidelity.agreement import compare
from edgepack.edge.fidelity.kept_predictions import (
    KeptPredictions,
    decode_logits,
    encode_logits,
    has_kept,
    keep,
    kept_bytes,
)
from edgepack.edge.fidelity.scorers.scorer import Chunking
from edgepack.edge.fidelity.validate import validate
from edgepack.errors import IntegrityError, NumericError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.edge.fidelity.scorers.scorer import Chunk

VOCABULARY = 50
TEXT = "the text that is scored " * 4
CHUNKING = Chunking(16, None, 3)


class Bytes:
    """A tokenizer of letters."""

    bos = 1

    def tokenize(self, text: str) -> NDArray[np.int32]:
        return np.array([1, *(ord(letter) % VOCABULARY for letter in text)], dtype=np.int32)

    def piece(self, token: int) -> str:
        return chr(token)


class Noise:
    """A model whose predictions depend on the chunk alone; it counts them, and may stop."""

    label, vocabulary, context_limit = "noise", VOCABULARY, 64

    def __init__(self, seed: int = 0, stop_at: int | None = None, bad: float = 0.0) -> None:
        self.tokenizer, self.seed, self.stop_at, self.bad = Bytes(), seed, stop_at, bad
        self.scored: list[int] = []

    def score(self, chunk: Chunk) -> NDArray[np.float32]:
        if chunk.index == self.stop_at:
            raise KeyboardInterrupt
        self.scored.append(chunk.index)
        rows = np.random.default_rng([self.seed, chunk.index]).normal(0, 3, (chunk.scored, VOCABULARY))
        return (rows + self.bad).astype(np.float32)

    def close(self) -> None:
        pass


def kept(folder: Path, original: Noise) -> KeptPredictions:
    folder.mkdir(exist_ok=True)
    return keep(folder, TEXT, lambda _scorer: CHUNKING, lambda: original)


@given(st.integers(0, 2**32), st.floats(0.1, 12.0), st.booleans())
def test_a_distribution_comes_back_to_within_a_millionth_of_a_nat(seed: int, width: float, impossible: bool) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, width, (4, 300)).astype(np.float32) - np.float32(rng.uniform(0, 40))
    if impossible:
        logits[:, rng.integers(0, 300, 20)] = -np.inf
    back = decode_logits(encode_logits(logits), "here")
    found = compare(logits, back, np.zeros(4, np.int32))
    assert np.array_equal(np.isneginf(back), np.isneginf(logits))
    assert float(found.divergence.max()) < 1e-6
    assert found.agrees.all()


def test_equal_logits_keep_the_first_choice_of_the_smallest_id() -> None:
    logits = np.zeros((1, 8), np.float32)
    logits[0, 3] = logits[0, 5] = 1.0
    logits[0, 5] += np.float32(1e-5)  # nearer than the lattice tells apart
    assert decode_logits(encode_logits(logits), "here").argmax() == 5
    assert decode_logits(encode_logits(np.zeros((1, 8), np.float32)), "here").argmax() == 0


def test_figures_against_what_was_kept_are_those_against_the_original(tmp_path: Path) -> None:
    live = validate(Noise(), [Noise(1)], TEXT, CHUNKING)[0].statistics
    stored = validate(kept(tmp_path, Noise()), [Noise(1)], TEXT, CHUNKING)[0].statistics
    assert stored.divergence.mean == pytest.approx(live.divergence.mean, rel=1e-5)
    assert stored.agreement.mean == live.agreement.mean
    assert stored.loss_difference.mean == pytest.approx(live.loss_difference.mean, abs=2e-3)


def test_an_interrupted_run_goes_on_and_a_finished_one_opens_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path, Noise(stop_at=1))
    assert not has_kept(tmp_path)
    second = Noise()
    found = kept(tmp_path, second)
    assert second.scored == [1, 2]
    assert found.chunking == CHUNKING
    assert has_kept(tmp_path)
    keep(tmp_path, TEXT, lambda _scorer: pytest.fail("asked"), lambda: pytest.fail("opened"))
    size = sum(path.stat().st_size for path in tmp_path.glob("*.predictions"))
    assert size - 3 * 48 == kept_bytes(found.scored, VOCABULARY)


def test_what_is_no_number_is_refused_and_another_text_too(tmp_path: Path) -> None:
    with pytest.raises(NumericError, match="reference"):
        kept(tmp_path / "bad", Noise(bad=np.nan))
    found = kept(tmp_path / "good", Noise())
    with pytest.raises(UsageError, match="another one"):
        found.tokenizer.tokenize(TEXT + ".")


@pytest.mark.parametrize("at", [0, 9, 40, -1])
def test_a_flipped_bit_is_seen(tmp_path: Path, at: int) -> None:
    found = kept(tmp_path, Noise())
    path = tmp_path / "00001.predictions"
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(raw)
    with pytest.raises(IntegrityError, match=r"00001\.predictions"):
        validate(found, [Noise(1)], TEXT, CHUNKING)


def test_sizes_that_do_not_fit_are_refused_whatever_the_digest() -> None:
    import hashlib

    for rows, vocabulary in ((0, 8), (1 << 31, 8), (1, 1 << 30), (2, 8)):
        body = struct.pack("<8sII", b"EDGEPRD1", rows, vocabulary) + bytes(20)
        with pytest.raises(IntegrityError):
            decode_logits(body + hashlib.sha256(body).digest(), "here")
    with pytest.raises(IntegrityError):
        decode_logits(b"", "here")


@pytest.mark.parametrize("change", [{"tokens": "x"}, {"tokens": [-1]}, {"ctx": None}, {"vocabulary": "many"}])
def test_a_folder_that_says_something_else_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    kept(tmp_path, Noise())
    path = tmp_path / "about.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(IntegrityError, match=r"about\.json"):
        KeptPredictions(tmp_path)
    path.write_text("[]")
    with pytest.raises(IntegrityError, match=r"about\.json"):
        KeptPredictions(tmp_path)
