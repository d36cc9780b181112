"""Runs scorers over task items: log-likelihoods of endings, greedy continuations, answers side by side.

What items are and how answers compare is `tasks`' business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgepack.edge.fidelity.agreement import TruncatedPredictions, check_logits, log_softmax
from edgepack.edge.fidelity.predictions import predictions
from edgepack.edge.fidelity.scorers.scorer import BatchScorer, Chunk
from edgepack.edge.fidelity.tasks.tasks import ChoiceItem, Comparison, MatchItem, choose, compare_answers
from edgepack.errors import UsageError
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from edgepack.edge.fidelity.scorers.scorer import Scorer
    from edgepack.progress import Progress

_LARGEST_LOSS = 700.0  # nats a token: exp() of more is no float
_SPARE_TOKENS = 4  # an answer may be spelled with a few more tokens than its text alone takes


@dataclass(frozen=True)
class ItemResult:
    """One item.

    Attributes:
        item: its number, from 0.
        reference, candidate: measure → whether that model answers rightly.
        reference_perplexity, candidate_perplexity: of the right ending's tokens; None of a generated answer.
    """

    item: int
    reference: Mapping[str, bool]
    candidate: Mapping[str, bool]
    reference_perplexity: float | None = None
    candidate_perplexity: float | None = None


@dataclass(frozen=True)
class TaskResult(Mapping[str, Comparison]):
    """A task's measures, name → both models compared, and its items one by one.

    Attributes:
        measures: `acc` and `acc_norm` for multiple choice, `exact_match` for generation.
        items_in_order: every item's own answers.
    """

    measures: Mapping[str, Comparison]
    items_in_order: tuple[ItemResult, ...] = ()

    def __getitem__(self, measure: str) -> Comparison:
        """Both models by one measure."""
        return self.measures[measure]

    def __iter__(self) -> Iterator[str]:
        """Names of measures."""
        return iter(self.measures)

    def __len__(self) -> int:
        """How many measures."""
        return len(self.measures)


@dataclass(frozen=True)
class Answer:
    """What one model says to an item: measure → whether that is right; its perplexity on the right ending."""

    right: Mapping[str, bool]
    perplexity: float | None = None


def run_task(
    items: Sequence[ChoiceItem | MatchItem], reference: Scorer, candidate: Scorer, progress: Progress = silent
) -> TaskResult:
    """Answer every item with both models; a reference that is read by blocks scores all endings together first.

    Raises:
        UsageError: an item is longer than a model's context.
        NumericError: NaN or +inf among the logits.
    """
    found, known = [], _scored_together(items, reference, progress)
    with progress("answering", len(items), " items") as advance:
        for number, item in enumerate(items):
            ours, theirs = answer(item, reference, number, known.get(number)), answer(item, candidate, number)
            found.append(ItemResult(number, ours.right, theirs.right, ours.perplexity, theirs.perplexity))
            advance(1)
    measures = dict.fromkeys(measure for each in found for measure in each.reference)
    return TaskResult({measure: _compared(found, measure) for measure in measures}, tuple(found))


def _compared(found: Sequence[ItemResult], measure: str) -> Comparison:
    pairs = [(each.reference[measure], each.candidate[measure]) for each in found if measure in each.reference]
    return compare_answers([ours for ours, _ in pairs], [theirs for _, theirs in pairs])


def answer(
    item: ChoiceItem | MatchItem, scorer: Scorer, number: int, scored: Sequence[tuple[float, int]] | None = None
) -> Answer:
    """Whether `scorer` answers `item` rightly, by each measure that fits it.

    Args:
        item: what is asked.
        scorer: who answers.
        number: of the item, for messages.
        scored: log-likelihood and tokens of each ending, where they are known already.
    """
    if isinstance(item, MatchItem):
        return Answer({"exact_match": _continues_with(item, scorer, number)})
    if scored is None:
        scored = [_log_likelihood(chunk, scorer.score(chunk), scorer) for chunk in _ending_chunks(item, scorer, number)]
    values = [value for value, _count in scored]
    right = {
        "acc": choose(values, item.endings, by_length=False) == item.label,
        "acc_norm": choose(values, item.endings, by_length=True) == item.label,
    }
    value, count = scored[item.label]
    loss = -value / max(1, count)
    return Answer(right, math.exp(loss) if loss < _LARGEST_LOSS else None)


def _scored_together(
    items: Sequence[ChoiceItem | MatchItem], scorer: Scorer, progress: Progress
) -> dict[int, list[tuple[float, int]]]:
    """Item → what is known of each ending, from a scorer for which many chunks at once cost less; else nothing."""
    if not isinstance(scorer, BatchScorer):
        return {}
    choices = [(number, item) for number, item in enumerate(items) if isinstance(item, ChoiceItem)]
    chunks = [chunk for number, item in choices for chunk in _ending_chunks(item, scorer, number)]
    placed = (replace(chunk, index=place) for place, chunk in enumerate(chunks))
    longest_first = sorted(placed, key=lambda chunk: -len(chunk.tokens))  # as the first says how many fit
    found: dict[int, tuple[float, int]] = {}
    with progress("scoring endings", len(chunks), " endings") as advance:
        for chunk, logits in predictions(scorer, iter(longest_first)):
            found[chunk.index] = _log_likelihood(chunk, logits, scorer)
            advance(1)
    known: dict[int, list[tuple[float, int]]] = {}
    for place, chunk in enumerate(chunks):
        known.setdefault(chunk.index, []).append(found[place])
    return known


def _ending_chunks(item: ChoiceItem, scorer: Scorer, number: int) -> list[Chunk]:
    """What is read of each ending; the text is tokenized as a whole, so that no token is cut."""
    found = []
    context = scorer.tokenizer.tokenize(item.context)
    for ending in item.endings:
        tokens = scorer.tokenizer.tokenize(item.context + (ending if ending[:1].isspace() else f" {ending}"))
        shared = _shared_beginning(context, tokens)
        found.append(_chunk(tokens, max(0, min(shared, len(tokens) - 1) - 1), scorer, number))
    return found


def _log_likelihood(
    chunk: Chunk, logits: NDArray[np.float32] | TruncatedPredictions, scorer: Scorer
) -> tuple[float, int]:
    """(log p(ending | context) in nats, its tokens)."""
    log_p = log_softmax(_checked(logits, chunk, scorer))
    return float(log_p[np.arange(len(log_p)), chunk.scored_targets].sum()), len(log_p)


def _continues_with(item: MatchItem, scorer: Scorer, number: int) -> bool:
    """Whether the greedy continuation begins with the answer's tokens, compared as text."""
    tokens = scorer.tokenizer.tokenize(item.prompt)
    budget = len(scorer.tokenizer.tokenize(item.answer)) + _SPARE_TOKENS
    text = ""
    for _ in range(budget):
        padded = np.append(tokens, tokens[-1]).astype(np.int32)  # the last position is not scored, so one more
        chunk = _chunk(padded, len(tokens) - 1, scorer, number)
        token = int(_checked(scorer.score(chunk), chunk, scorer)[0].argmax())
        tokens = np.append(tokens, token).astype(np.int32)
        text += scorer.tokenizer.piece(token)
        if len(text.strip()) > len(item.answer.strip()):
            break
    return text.strip().startswith(item.answer.strip())


def _chunk(tokens: NDArray[np.int32], first: int, scorer: Scorer, number: int) -> Chunk:
    """Tokens whose predictions from `first` on are scored; raises UsageError where there are too many."""
    if len(tokens) > scorer.context_limit:
        raise UsageError(f"item {number}: {len(tokens)} tokens, {scorer.label} takes {scorer.context_limit}")
    return Chunk(number, 0, tokens, tokens[1:], first)


def _checked(logits: NDArray[np.float32] | TruncatedPredictions, chunk: Chunk, scorer: Scorer) -> NDArray[np.float32]:
    if isinstance(logits, TruncatedPredictions):
        raise UsageError(f"{scorer.label}: a stored reference answers no tasks")
    check_logits(logits, scorer.label, chunk.first)
    return logits


def _shared_beginning(first: NDArray[np.int32], second: NDArray[np.int32]) -> int:
    """How many tokens both begin with."""
    shared = min(len(first), len(second))
    differing = np.flatnonzero(first[:shared] != second[:shared])
    return int(differing[0]) if len(differing) else shared
