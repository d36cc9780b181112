"""Runs scorers over task items: log-likelihoods of endings, greedy continuations, answers side by side.

What items are and how answers compare is `tasks`' business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.edge.fidelity.agreement import TruncatedPredictions, check_logits, log_softmax
from edgepack.edge.fidelity.scorers.scorer import Chunk
from edgepack.edge.fidelity.tasks.tasks import ChoiceItem, Comparison, MatchItem, choose, compare_answers
from edgepack.errors import UsageError
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgepack.edge.fidelity.scorers.scorer import Scorer
    from edgepack.progress import Progress

_SPARE_TOKENS = 4  # an answer may be spelled with a few more tokens than its text alone takes


@dataclass(frozen=True)
class TaskResult:
    """A task's measures: name → both models compared.

    Attributes:
        measures: `acc` and `acc_norm` for multiple choice, `exact_match` for generation.
    """

    measures: dict[str, Comparison]


def run_task(
    items: Sequence[ChoiceItem | MatchItem], reference: Scorer, candidate: Scorer, progress: Progress = silent
) -> TaskResult:
    """Answer every item with both models.

    Raises:
        UsageError: an item is longer than a model's context.
        NumericError: NaN or +inf among the logits.
    """
    answers: dict[str, list[list[bool]]] = {}
    with progress("answering", len(items), " items") as advance:
        for number, item in enumerate(items):
            for side, scorer in enumerate((reference, candidate)):
                for measure, right in answer(item, scorer, number).items():
                    answers.setdefault(measure, [[], []])[side].append(right)
            advance(1)
    return TaskResult({measure: compare_answers(*sides) for measure, sides in answers.items()})


def answer(item: ChoiceItem | MatchItem, scorer: Scorer, number: int) -> dict[str, bool]:
    """Whether `scorer` answers `item` rightly, by each measure that fits it."""
    if isinstance(item, MatchItem):
        return {"exact_match": _continues_with(item, scorer, number)}
    endings = [ending if ending[:1].isspace() else f" {ending}" for ending in item.endings]
    values = [_log_likelihood(item.context, ending, scorer, number) for ending in endings]
    return {
        "acc": choose(values, item.endings, by_length=False) == item.label,
        "acc_norm": choose(values, item.endings, by_length=True) == item.label,
    }


def _log_likelihood(context: str, ending: str, scorer: Scorer, number: int) -> float:
    """Log p(ending | context) in nats; the whole text is tokenized, so that no token is cut where they meet."""
    tokens = scorer.tokenizer.tokenize(context + ending)
    shared = _shared_beginning(scorer.tokenizer.tokenize(context), tokens)
    first = max(0, min(shared, len(tokens) - 1) - 1)
    logits = _logits(tokens, first, scorer, number)
    log_p = log_softmax(logits)
    return float(log_p[np.arange(len(log_p)), tokens[first + 1 :]].sum())


def _continues_with(item: MatchItem, scorer: Scorer, number: int) -> bool:
    """Whether the greedy continuation begins with the answer's tokens, compared as text."""
    tokens = scorer.tokenizer.tokenize(item.prompt)
    budget = len(scorer.tokenizer.tokenize(item.answer)) + _SPARE_TOKENS
    text = ""
    for _ in range(budget):
        padded = np.append(tokens, tokens[-1]).astype(np.int32)  # the last position is not scored, so one more
        token = int(_logits(padded, len(tokens) - 1, scorer, number)[0].argmax())
        tokens = np.append(tokens, token).astype(np.int32)
        text += scorer.tokenizer.piece(token)
        if len(text.strip()) > len(item.answer.strip()):
            break
    return text.strip().startswith(item.answer.strip())


def _logits(tokens: NDArray[np.int32], first: int, scorer: Scorer, number: int) -> NDArray[np.float32]:
    if len(tokens) > scorer.context_limit:
        raise UsageError(f"item {number}: {len(tokens)} tokens, {scorer.label} takes {scorer.context_limit}")
    logits = scorer.score(Chunk(number, 0, tokens, tokens[1:], first))
    if isinstance(logits, TruncatedPredictions):
        raise UsageError(f"{scorer.label}: a stored reference answers no tasks")
    check_logits(logits, scorer.label, first)
    return logits


def _shared_beginning(first: NDArray[np.int32], second: NDArray[np.int32]) -> int:
    """How many tokens both begin with."""
    shared = min(len(first), len(second))
    differing = np.flatnonzero(first[:shared] != second[:shared])
    return int(differing[0]) if len(differing) else shared
