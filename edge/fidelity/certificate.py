"""A publisher's proof beside the model: what its file answered there, replayed against what this machine computes.

It reads no archive and opens no model; the bytes are `stored_reference`'s, finding the certificate the pipeline's.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.edge.fidelity.agreement import compare, concatenate, truncate
from edgepack.edge.fidelity.predictions import score_ahead
from edgepack.edge.fidelity.scorers.scorer import Chunk
from edgepack.edge.fidelity.stored_reference import StoredReference
from edgepack.edge.fidelity.validate import Validation
from edgepack.errors import CheckFailedError, UsageError
from edgepack.gguf.types import Value, string
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from edgepack.edge.fidelity.agreement import TokenMeasures, TruncatedPredictions
    from edgepack.edge.fidelity.scorers.scorer import Chunking, Scorer
    from edgepack.edge.fidelity.stored_reference import StoredReference as Stored
    from edgepack.progress import Progress

MEMBER = "certificate.edgeref"
DEFAULT_TOKENS = 4096
REPLAY_SECONDS = 50.0
# Other kernels (a GPU's, another instruction set's) round otherwise: measured between AVX2 and a float32 matrix
# product, about one first choice in a hundred changes for a small model. Broken hardware or bytes change far more.
LEAST_SAME_CHOICE = 0.97
LARGEST_DIVERGENCE_EXCESS = 0.002  # nats above the publisher's mean …
LARGEST_DIVERGENCE_RATIO = 0.25  # … or this share of it, whichever is more


def kept_tokens(vocabulary: int) -> int:
    """How many of the likeliest tokens are kept at a position: what stays below 1 % of llama.cpp's base logits.

    Those take 2 × (vocabulary + 4) bytes a position; a kept token about 3 after compression.
    """
    return max(1, min(48, vocabulary // 512 + 8, vocabulary))


def store(
    reference: Scorer,
    candidate: Scorer,
    text: str,
    chunking: Chunking,
    facts: Mapping[str, Any],
    progress: Progress = silent,
) -> Stored:
    """Keep the reference's and the candidate's predictions on the chunks of `chunking`.

    Args:
        reference: a scorer with logits.
        candidate: the file that is certified, with logits too.
        text: it is not stored, only its tokens and its digest in `facts`.
        chunking: chunks side by side, as few as should be stored.
        facts: what else is stated, as JSON has it.
        progress: told of scored tokens.

    Raises:
        UsageError: the text is too short, or chunks overlap.
    """
    if chunking.stride is not None:
        raise UsageError("a stored reference needs chunks side by side: leave --stride out")
    tokens = reference.tokenizer.tokenize(text)
    kept, measured, read = [], [], []
    with progress("storing the reference", chunking.scored(len(tokens)), " tokens") as advance:
        for chunk, logits in score_ahead(reference, chunking.chunks(tokens, reference.tokenizer.bos)):
            answers = candidate.score(chunk)
            assert isinstance(logits, np.ndarray) and isinstance(answers, np.ndarray)  # noqa: PT018
            part = truncate(logits, chunk.scored_targets, kept_tokens(reference.vocabulary))
            kept.append(part)
            measured.append(compare(part, answers, chunk.scored_targets, chunk.start + chunk.first))
            read.append(tokens[chunk.start : chunk.start + chunking.ctx])
            advance(chunk.scored)
    found = concatenate(measured)
    return StoredReference(
        np.stack(read), reference.tokenizer.bos, chunking.ctx // 2, _joined(kept), found.candidate_top.astype(np.int32),
        found.candidate_target, found.divergence, dict(facts),
    )  # fmt: skip


@dataclass(frozen=True)
class Replay:
    """What this machine computed against what the publisher's did.

    Attributes:
        validation: this machine's figures against the stored reference.
        same_choice: share of positions where this machine's first choice is the publisher's.
        log_probability_change: mean |difference| of the log-probability of the text's own tokens, in nats.
        publisher_kl: the publisher's mean divergence on the same positions.
        seconds: wall time.
    """

    validation: Validation
    same_choice: float
    log_probability_change: float
    publisher_kl: float
    seconds: float

    @property
    def reproduced(self) -> bool:
        """Whether this machine says what the publisher's said, up to rounding."""
        mean = self.validation.statistics.divergence.mean
        room = max(LARGEST_DIVERGENCE_EXCESS, LARGEST_DIVERGENCE_RATIO * self.publisher_kl)
        return self.same_choice >= LEAST_SAME_CHOICE and mean <= self.publisher_kl + room

    def __str__(self) -> str:
        """One sentence."""
        verdict = "reproduces" if self.reproduced else "does NOT reproduce"
        return (
            f"this machine {verdict} the publisher's answers: {100 * self.same_choice:.2f} % the same first choice, "
            f"mean KL {self.validation.statistics.divergence.mean:.3g} (publisher {self.publisher_kl:.3g})"
        )


def replay(stored: Stored, candidate: Scorer, progress: Progress = silent, seconds: float = REPLAY_SECONDS) -> Replay:
    """Score the stored chunks with `candidate`, as many as `seconds` allow and at least one.

    Raises:
        CheckFailedError: the vocabularies differ in size.
        NumericError: NaN or +inf among the logits.
    """
    if candidate.vocabulary != stored.reference.vocabulary:
        raise CheckFailedError(
            f"the certificate was made for another model: vocabulary {stored.reference.vocabulary}, "
            f"got {candidate.vocabulary}"
        )
    began = time.monotonic()
    validation, measured = Validation(candidate.label), []
    with progress("replaying", len(stored.candidate_top), " tokens") as advance:
        for chunk, part in stored_chunks(stored):
            answers = candidate.score(chunk)
            assert isinstance(answers, np.ndarray)
            measured.append(compare(part, answers, chunk.scored_targets, chunk.start + chunk.first))
            validation.add(chunk, measured[-1])
            advance(chunk.scored)
            if time.monotonic() - began > seconds:
                break
    validation.finish(candidate.tokenizer, time.monotonic() - began)
    return _judged(stored, validation, concatenate(measured))


def _judged(stored: Stored, validation: Validation, here: TokenMeasures) -> Replay:
    n = len(here)
    change = np.abs(here.candidate_target - stored.candidate_target[:n])
    return Replay(
        validation,
        float((here.candidate_top == stored.candidate_top[:n]).mean()),
        float(change[np.isfinite(change)].mean()) if np.isfinite(change).any() else 0.0,
        float(stored.candidate_divergence[:n].mean()),
        validation.seconds,
    )


def stored_chunks(stored: Stored) -> Iterator[tuple[Chunk, TruncatedPredictions]]:
    """The stored chunks with what was kept of the reference."""
    from edgepack.edge.fidelity.scorers.stored import StoredScorer

    scorer = StoredScorer(stored, "certificate")
    for index, tokens in enumerate(stored.tokens):
        chunk = Chunk(index, index * len(tokens), stored.read(index), tokens[1:], stored.first)
        yield chunk, scorer.score(chunk)


def small_form(figures: Mapping[str, Any]) -> Value:
    """The certificate's figures as a GGUF metadata value under `edgepack.gguf.keys.CERTIFICATE`."""
    return string(json.dumps(figures, sort_keys=True, ensure_ascii=False, allow_nan=False))


def _joined(parts: list[TruncatedPredictions]) -> TruncatedPredictions:
    def join(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])

    return type(parts[0])(join("ids"), join("log_probabilities"), join("tail"), join("target"), parts[0].vocabulary)
