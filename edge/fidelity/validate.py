"""Runs a reference and candidates over one text and gathers how they agree; gates decide whether that is enough.

It knows neither files nor libraries: scorers bring the logits, `agreement` measures, `validate_report` prints.
"""

from __future__ import annotations

import heapq
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgepack.edge.fidelity.agreement import compare
from edgepack.edge.fidelity.gates import GateResult, Gates, judged
from edgepack.edge.fidelity.predictions import score_ahead
from edgepack.edge.fidelity.scorers.scorer import first_difference
from edgepack.edge.fidelity.statistics import AgreementStatistics
from edgepack.errors import CheckFailedError, UsageError
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgepack.edge.fidelity.agreement import TokenMeasures
    from edgepack.edge.fidelity.scorers.scorer import Chunk, Chunking, Scorer, TokenDifference, Tokenizer
    from edgepack.progress import Progress

WORST_KEPT = 40
EXAMPLES_KEPT = 4096
CLEAR_DIVERGENCE = 0.1  # nats: more than rounding to 4 bits does at the median token of a small model
LOOKS = (12, 48, 192, 768)  # few looks: each one is a chance to be unlucky
_CONTEXT_TOKENS = 24


@dataclass(frozen=True, order=True)
class DivergentToken:
    """A token at which the models differ.

    Attributes:
        divergence: KL in nats.
        position: in the text's tokens, of the token that is predicted.
        in_chunk: its position in the chunk.
        context: int32 ids, the tokens before it.
        target, reference, candidate: ids of the text's own token and of each model's first choice.
        reference_p, candidate_p: each model's probability of the text's own token.
        margin: the reference's log-probability of its first choice less that of its second.
    """

    divergence: float
    position: int
    in_chunk: int = field(compare=False)
    context: tuple[int, ...] = field(compare=False)
    target: int = field(compare=False)
    reference: int = field(compare=False)
    candidate: int = field(compare=False)
    reference_p: float = field(compare=False)
    candidate_p: float = field(compare=False)
    margin: float = field(compare=False)

    @property
    def ids(self) -> tuple[int, ...]:
        """Every token id it names."""
        return (*self.context, self.target, self.reference, self.candidate)


@dataclass(frozen=True)
class Example:
    """One chunk of the text.

    Attributes:
        start: position in the text's tokens of the first one that is scored.
        tokens: that were scored.
        agreement: share of equal first choices.
        mean_kl: in nats.
        reference_perplexity, candidate_perplexity: of the text's own tokens; None beyond what a float holds.
    """

    start: int
    tokens: int
    agreement: float
    mean_kl: float
    reference_perplexity: float | None
    candidate_perplexity: float | None


@dataclass
class Validation:
    """What one candidate's pass over the text gave.

    Attributes:
        candidate: its label.
        statistics: all figures.
        chunks: how many were scored.
        tokens_differ: where the tokenizers part, or None; the reference's ids were scored by both all the same.
        first_clear: the first token where the models choose differently and diverge by CLEAR_DIVERGENCE or more.
        worst: the most divergent tokens, worst first, at most WORST_KEPT.
        examples: the first EXAMPLES_KEPT chunks, each by itself.
        seconds: of the whole pass, all candidates included.
        pieces: spelling of every token that `worst` and `first_clear` show.
    """

    candidate: str
    statistics: AgreementStatistics = field(default_factory=AgreementStatistics)
    chunks: int = 0
    tokens_differ: TokenDifference | None = None
    first_clear: DivergentToken | None = None
    worst: list[DivergentToken] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    seconds: float = 0.0
    pieces: dict[int, str] = field(default_factory=dict)

    def shown_tokens(self) -> set[int]:
        """Every token id in `worst` and `first_clear`."""
        shown = [*self.worst, *([self.first_clear] if self.first_clear else [])]
        return {
            number for token in shown for number in (*token.context, token.target, token.reference, token.candidate)
        }

    def spell(self, tokens: Sequence[int]) -> str:
        """The text of shown tokens."""
        return "".join(self.pieces.get(token, "") for token in tokens)

    def add(self, chunk: Chunk, measures: TokenMeasures) -> None:
        """Take in one chunk."""
        self.statistics.add(measures, chunk.first)
        self.chunks += 1
        if len(self.examples) < EXAMPLES_KEPT:
            self.examples.append(_example(chunk, measures))
        for row in np.argsort(-measures.divergence, kind="stable")[:WORST_KEPT].tolist():
            if len(self.worst) == WORST_KEPT and measures.divergence[row] <= self.worst[0].divergence:
                break
            push = heapq.heappush if len(self.worst) < WORST_KEPT else heapq.heappushpop
            push(self.worst, _divergent_token(chunk, measures, row))
        if self.first_clear is None:
            clear = np.flatnonzero(~measures.agrees & (measures.divergence >= CLEAR_DIVERGENCE))
            if len(clear):
                self.first_clear = _divergent_token(chunk, measures, int(clear[0]))

    def finish(self, tokenizer: Tokenizer, seconds: float) -> None:
        """After the last chunk: sort what is kept and spell it."""
        self.seconds = seconds
        self.worst.sort(reverse=True)
        self.pieces = {token: tokenizer.piece(token) for token in self.shown_tokens()}

    def gate_results(self, gates: Gates) -> list[GateResult]:
        """How each gate went, the tokenizers' first; gates that are None are left out."""
        results = [GateResult("same-tokens", self.tokens_differ is None, str(self.tokens_differ or "the same tokens"))]
        statistics = self.statistics
        if gates.min_agreement is not None:
            low = statistics.agreement.share_interval()[0]
            results.append(judged("min-agreement", "top-1 agreement", statistics.agreement.mean, low,
                                  gates.min_agreement, at_least=True))  # fmt: skip
        if gates.max_kl is not None:
            high = statistics.divergence.interval()[1]
            results.append(judged("max-kl", "mean KL", statistics.divergence.mean, high, gates.max_kl, at_least=False))
        if gates.max_perplexity_ratio is not None:
            ratio, (_low, high) = perplexity_ratio(statistics)
            results.append(judged("max-perplexity-ratio", "perplexity ratio", ratio, high,
                                  gates.max_perplexity_ratio, at_least=False))  # fmt: skip
        return results

    def passed(self, gates: Gates) -> bool:
        """Whether every gate is cleared."""
        return all(result.passed for result in self.gate_results(gates))


def perplexity_ratio(statistics: AgreementStatistics) -> tuple[float, tuple[float, float]]:
    """Perplexity of the candidate over the reference's, with its interval (low, high)."""
    # The difference of log-probabilities is reference less candidate: its mean is the ratio's logarithm.
    low, high = statistics.loss_difference.interval()
    return _exp(statistics.loss_difference.mean), (_exp(low), _exp(high))


def validate(
    reference: Scorer,
    candidates: Sequence[Scorer],
    text: str,
    chunking: Chunking,
    progress: Progress = silent,
    hopeless: Callable[[Validation], bool] | None = None,
) -> list[Validation]:
    """Score `text` with the reference once and with every candidate; memory does not grow with the text.

    The reference works one chunk ahead in a thread of its own: torch and llama.cpp both let go of Python's lock.

    Args:
        reference: what the candidates are held against; its token ids are what everyone reads.
        candidates: at least one.
        text: any text of at least one chunk.
        chunking: how it is cut.
        progress: told of scored chunks' tokens.
        hopeless: asked after LOOKS chunks each; when every candidate is, the rest of the text is left out.

    Returns:
        One validation a candidate, in their order.

    Raises:
        UsageError: the text is too short, or a chunk longer than a model's context.
        CheckFailedError: the vocabularies differ in size.
        NumericError: NaN or +inf among logits, with side and position.
    """
    check_context(chunking, [reference, *candidates])
    tokens = reference.tokenizer.tokenize(text)
    chunking.count(len(tokens))
    results = [Validation(candidate.label) for candidate in candidates]
    for candidate, result in zip(candidates, results, strict=True):
        result.tokens_differ = first_difference(reference.tokenizer, candidate.tokenizer, text)
        _check_vocabulary(reference, candidate, result.tokens_differ)
    began = time.perf_counter()
    with progress("validating", chunking.scored(len(tokens)), " tokens") as advance:
        for chunk, expected in score_ahead(reference, chunking.chunks(tokens, reference.tokenizer.bos)):
            for candidate, result in zip(candidates, results, strict=True):
                got = candidate.score(chunk)
                assert not hasattr(got, "ids"), "a stored reference is no candidate"
                result.add(chunk, compare(expected, got, chunk.scored_targets, chunk.start + chunk.first))
            advance(chunk.scored)
            if hopeless is not None and chunk.index + 1 in LOOKS and all(map(hopeless, results)):
                break
    for candidate, result in zip(candidates, results, strict=True):
        result.finish(candidate.tokenizer, time.perf_counter() - began)
    return results


def check_context(chunking: Chunking, scorers: Sequence[Scorer]) -> None:
    """Check that every scorer takes chunks of this length; raises UsageError naming the one that does not."""
    for scorer in scorers:
        if chunking.ctx > scorer.context_limit:
            raise UsageError(
                f"{scorer.label}: chunks of {chunking.ctx} tokens, but its context is {scorer.context_limit}: "
                f"use --ctx {scorer.context_limit} or less"
            )


def _check_vocabulary(reference: Scorer, candidate: Scorer, difference: TokenDifference | None) -> None:
    if reference.vocabulary != candidate.vocabulary:
        told = f"; {difference}" if difference else ""
        raise CheckFailedError(
            f"{candidate.label}: vocabularies must be equally large: reference {reference.vocabulary}, "
            f"candidate {candidate.vocabulary}{told}"
        )


def _divergent_token(chunk: Chunk, measures: TokenMeasures, row: int) -> DivergentToken:
    here = chunk.first + row  # the position that predicts; the token predicted is the next
    return DivergentToken(
        divergence=float(measures.divergence[row]),
        position=chunk.start + here + 1,
        in_chunk=here + 1,
        context=tuple(chunk.tokens[max(0, here + 1 - _CONTEXT_TOKENS) : here + 1].tolist()),
        target=int(measures.targets[row]),
        reference=int(measures.reference_top[row]),
        candidate=int(measures.candidate_top[row]),
        reference_p=_exp(float(measures.reference_target[row])),
        candidate_p=_exp(float(measures.candidate_target[row])),
        margin=float(measures.margin[row]),
    )


def _example(chunk: Chunk, measures: TokenMeasures) -> Example:
    perplexities = (_exp(-float(side.mean())) for side in (measures.reference_target, measures.candidate_target))
    return Example(
        chunk.start + chunk.first + 1, len(measures), float(measures.agrees.mean()), float(measures.divergence.mean()),
        *(value if math.isfinite(value) else None for value in perplexities),
    )  # fmt: skip


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
