"""The likeliest of given endings, and what their log-likelihoods say of it. Needs an engine that gives logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.edge.confidence.features import Observation, observe_choice
from edgepack.edge.llama.chances import chances_of
from edgepack.edge.llama.engine import common_prefix
from edgepack.edge.llama.engines import with_logits
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.edge.confidence.record import Verdict
    from edgepack.edge.llama.engine import OpenModel


@dataclass(frozen=True)
class Picked:
    """The likeliest of several choices.

    Attributes:
        index: its number, from 0.
        seen: what the choices' log-likelihoods say of it.
        tokens: of it.
    """

    index: int
    seen: Observation
    tokens: int


@dataclass(frozen=True)
class Choice:
    """What a model chose.

    Attributes:
        index: of the likeliest choice, from 0.
        share: its probability among the choices, by the log-probabilities alone.
        verdict: how likely it is the right one; None where nobody has measured that.
    """

    index: int
    share: float
    verdict: Verdict | None


def pick(model: OpenModel, prompt: str, choices: Sequence[str]) -> Picked:
    """The choice that a model finds likeliest as a whole, each after one space unless it brings its own.

    What the choices share is evaluated once.

    Raises:
        UsageError: fewer than two choices, or an empty one; the engine gives no logits; prompt and choice are longer
            than the context.
    """
    if len(choices) < 2 or not all(choices):
        raise UsageError(f"choices: expected at least two texts, got {list(choices)!r:.80}")
    endings = [choice if choice[:1].isspace() else f" {choice}" for choice in choices]
    context, rows = model.tokenize(prompt), _Rows(model)
    found = [_log_p(rows, context, model.tokenize(prompt + ending)) for ending in endings]
    scores = [sum(one) for one in found]
    best = max(range(len(scores)), key=scores.__getitem__)
    return Picked(best, observe_choice(scores, found[best]), len(found[best]))


def _log_p(rows: _Rows, context: Sequence[int], ids: Sequence[int]) -> list[float]:
    """Log p of each token of `ids` that follows the context; the text was tokenized as a whole, so none is cut."""
    first = max(1, min(common_prefix(context, ids), len(ids) - 1))
    return [chances_of(rows.after(ids[:place]), ids[place], 1).log_p for place in range(first, len(ids))]


class _Rows:
    """Logits after beginnings, each computed once."""

    def __init__(self, model: OpenModel) -> None:
        self._model = with_logits(model, "scoring choices")
        self._known: dict[tuple[int, ...], NDArray[np.float32]] = {}

    def after(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits [vocabulary] of what follows `ids`."""
        key = tuple(ids)
        if key not in self._known:
            self._known[key] = self._model.next_logits(ids)
        return self._known[key]
