"""Which answers are given and which are escalated: the least confidence for a wanted accuracy or budget, measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import CheckFailedError, UsageError
from edgepack.pipeline.confidence.metrics import RESAMPLES, interval, resamples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

LEAST_GIVEN = 20  # answers below which a share says nothing
ALL_ESCALATED = 2.0  # above every confidence


@dataclass(frozen=True)
class Wish:
    """What a router is to reach: one of the two.

    Attributes:
        accuracy: share of the given answers that is to be right, 0 to 1, both excluded.
        escalate: share of questions that may be escalated, 0 to 1, both excluded.
    """

    accuracy: float | None = None
    escalate: float | None = None

    def __post_init__(self) -> None:
        if (self.accuracy is None) == (self.escalate is None):
            raise UsageError("router: expected an accuracy or a share to escalate, one of the two")
        for name, value in (("accuracy", self.accuracy), ("share to escalate", self.escalate)):
            if value is not None and not 0 < value < 1:
                raise UsageError(f"router: {name}: expected above 0 and below 1, got {value:g}")

    def __str__(self) -> str:
        """For people."""
        if self.accuracy is not None:
            return f"{100 * self.accuracy:g} % of the given answers right"
        return f"{100 * float(self.escalate or 0):g} % of questions escalated"


@dataclass(frozen=True)
class Routed:
    """What a threshold does with answers that it was not chosen on.

    Attributes:
        threshold: the least confidence of an answer that is given.
        threshold_interval: 95 %, by drawing the fitting half anew.
        given: share of questions that are answered.
        given_interval: 95 %.
        accuracy: share of the given answers that is right; 0 where none is given.
        accuracy_interval: 95 %.
        accuracy_of_all: share right without a router.
        raw_accuracy: share right when as many are given by the raw log-probabilities.
    """

    threshold: float
    threshold_interval: tuple[float, float]
    given: float
    given_interval: tuple[float, float]
    accuracy: float
    accuracy_interval: tuple[float, float]
    accuracy_of_all: float
    raw_accuracy: float


def choose_threshold(
    confidence: Floats, right: Bools, groups: Sequence[int], wish: Wish, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """The least confidence that reaches the wish on these answers, and its 95 % bootstrap interval.

    Raises:
        CheckFailedError: no threshold that still gives `LEAST_GIVEN` answers reaches the wanted accuracy.
    """
    order = np.argsort(-confidence, kind="stable")
    held, truth = confidence[order], right[order]
    found = float(_thresholds(held, truth, np.ones((1, len(order))), wish)[0])
    if found == ALL_ESCALATED:
        best = max(np.cumsum(truth)[LEAST_GIVEN - 1 :] / np.arange(LEAST_GIVEN, len(truth) + 1), default=0.0)
        raise CheckFailedError(
            f"router: {wish}: no threshold reaches it; the best that {LEAST_GIVEN} or more answers reach is "
            f"{100 * best:.1f} %: ask for less, or for a share to escalate"
        )
    drawn = [_thresholds(held, truth, weights[:, order], wish) for weights in resamples(groups, RESAMPLES, seed)]
    return found, interval(np.minimum(np.concatenate(drawn), 1.0))


def _thresholds(held: Floats, truth: Bools, weights: Floats, wish: Wish) -> Floats:
    """The threshold under each row of weights [resamples, n]; items fall in confidence."""
    given = np.cumsum(weights, axis=1)
    total = given[:, -1:]
    if wish.accuracy is not None:
        correct = np.cumsum(weights * truth, axis=1)
        good = (correct >= wish.accuracy * given) & (given >= LEAST_GIVEN)
    else:
        good = total - given <= float(wish.escalate or 0) * total
    good &= np.append(held[1:] < held[:-1], True)  # equally sure answers go the same way
    places = np.where(good.any(axis=1), _last(good) if wish.accuracy is not None else good.argmax(axis=1), -1)
    return np.where(places >= 0, held[places], ALL_ESCALATED)


def _last(good: NDArray[np.bool_]) -> NDArray[np.int64]:
    last: NDArray[np.int64] = good.shape[1] - 1 - good[:, ::-1].argmax(axis=1)
    return last


def measure_route(
    threshold: float,
    threshold_interval: tuple[float, float],
    confidence: Floats,
    right: Bools,
    raw: Floats,
    groups: Sequence[int],
    seed: int = 0,
) -> Routed:
    """What a threshold does on answers that had no part in choosing it.

    Args:
        threshold: the least confidence of an answer that is given.
        threshold_interval: as `choose_threshold` gives it.
        confidence: calibrated, float64 [n].
        right: bool [n].
        raw: confidences by the log-probabilities alone, float64 [n].
        groups: that are drawn together.
        seed: of the drawing.
    """
    given = confidence >= threshold
    count = int(given.sum())
    shares, accuracies = [], []
    for weights in resamples(groups, RESAMPLES, seed):
        drawn = weights @ given
        shares.append(drawn / weights.sum(axis=1))
        accuracies.append((weights @ (given & right))[drawn > 0] / drawn[drawn > 0])
    known = np.concatenate(accuracies)
    order = np.argsort(-raw, kind="stable")[:count]
    return Routed(
        threshold,
        threshold_interval,
        float(given.mean()),
        interval(np.concatenate(shares)),
        float(right[given].mean()) if count else 0.0,
        interval(known) if len(known) else (0.0, 1.0),
        float(right.mean()),
        float(right[order].mean()) if count else 0.0,
    )
