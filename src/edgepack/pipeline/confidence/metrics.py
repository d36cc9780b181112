"""How good confidences are: calibration error, Brier score, ranking, and what an answer costs in risk.

Pure functions of two arrays: `confidence`, float64 [n], 0 to 1, and `right`, bool [n]. Weights count items more than
once, which is how intervals are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

BINS = 15
RESAMPLES = 1000
_LEAST_P = 1e-6  # where a confidence of 0 or 1 would cost infinitely much
_BLOCK = 64  # resamples at a time, so that memory stays small


@dataclass(frozen=True)
class Bin:
    """Answers of about the same confidence.

    Attributes:
        low, high: confidences, `low` excluded but for the first bin, `high` included.
        count: answers.
        confidence: their mean; 0 where there are none.
        accuracy: share that is right.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def bin_numbers(confidence: Floats, bins: int = BINS) -> NDArray[np.int64]:
    """The bin of each confidence: `bins` of equal width, (low, high], 0 in the first."""
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)


def reliability(confidence: Floats, right: Bools, bins: int = BINS) -> list[Bin]:
    """The bins of a reliability diagram."""
    numbers = bin_numbers(confidence, bins)
    found = []
    for index in range(bins):
        inside = numbers == index
        count = int(inside.sum())
        mean = float(confidence[inside].mean()) if count else 0.0
        accuracy = float(right[inside].mean()) if count else 0.0
        found.append(Bin(index / bins, (index + 1) / bins, count, mean, accuracy))
    return found


def calibration_error(confidence: Floats, right: Bools, bins: int = BINS) -> float:
    """Expected calibration error (Naeini et al. 2015): |mean confidence − accuracy| over bins, weighted by count."""
    return float(_errors(confidence, right, np.ones((1, len(confidence))), bins)[0])


def _errors(confidence: Floats, right: Bools, weights: Floats, bins: int = BINS) -> Floats:
    """Calibration error under each row of `weights` [resamples, n]."""
    inside = np.zeros((len(confidence), bins))
    inside[np.arange(len(confidence)), bin_numbers(confidence, bins)] = confidence - right
    errors: Floats = np.abs(weights @ inside).sum(axis=1) / weights.sum(axis=1)
    return errors


def calibration_interval(confidence: Floats, right: Bools, groups: Sequence[int], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the calibration error, whole groups drawn with replacement."""
    errors = np.concatenate([_errors(confidence, right, weights) for weights in resamples(groups, RESAMPLES, seed)])
    return interval(errors)


def interval(values: Floats) -> tuple[float, float]:
    """The middle 95 % of values."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def resamples(groups: Sequence[int], count: int, seed: int) -> list[Floats]:
    """Blocks of weights [some, n]: how often each item is drawn where groups are drawn with replacement."""
    _names, numbers = np.unique(np.asarray(groups), return_inverse=True)
    many = int(numbers.max()) + 1
    chance = np.random.default_rng(seed)
    drawn = []
    for start in range(0, count, _BLOCK):
        rows = min(_BLOCK, count - start)
        weights = chance.multinomial(many, np.full(many, 1 / many), size=rows)[:, numbers].astype(np.float64)
        drawn.append(weights)
    return drawn


def perfect_error(confidence: Floats, seed: int = 0, draws: int = 200) -> float:
    """The calibration error that so many answers show by chance where every confidence is exactly true."""
    chance = np.random.default_rng(seed)
    right = chance.random((draws, len(confidence))) < confidence
    return float(np.mean([calibration_error(confidence, row) for row in right]))


def brier(confidence: Floats, right: Bools) -> float:
    """Brier score: the mean squared difference of confidence and truth (0 or 1)."""
    return float(np.mean((confidence - right) ** 2))


def log_loss(confidence: Floats, right: Bools) -> float:
    """Mean negative log-likelihood in nats; confidences of 0 and 1 count as one in a million off."""
    held = np.clip(confidence, _LEAST_P, 1 - _LEAST_P)
    return float(-np.mean(np.where(right, np.log(held), np.log1p(-held))))


def auroc(confidence: Floats, right: Bools) -> float:
    """How often a right answer is held surer than a wrong one, equal ones as half: the area under the ROC curve.

    0.5 where all are right or all are wrong: nothing can be told apart.
    """
    positives, negatives = int(right.sum()), int((~right).sum())
    if not positives or not negatives:
        return 0.5
    values, counts = np.unique(confidence, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[np.searchsorted(values, confidence)]
    above = float(ranks[right].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def risk_coverage(confidence: Floats, right: Bools) -> tuple[Floats, Floats]:
    """Share of answers given, and share of them that is wrong, when the surest are given first (El-Yaniv 2010).

    Equally sure answers are given in random order: what is counted is the expectation over it.

    Returns:
        coverage and risk, float64 [n] each; entry k − 1 is of the k surest.
    """
    order = np.argsort(-confidence, kind="stable")
    _values, starts, counts = np.unique(-confidence[order], return_index=True, return_counts=True)
    wrong = ~right[order]
    means = np.add.reduceat(wrong.astype(np.float64), starts) / counts
    given = np.arange(1, len(order) + 1)
    return given / len(order), np.cumsum(np.repeat(means, counts)) / given


def area_under_risk(confidence: Floats, right: Bools) -> float:
    """Mean risk over all coverages; the less the better."""
    return float(risk_coverage(confidence, right)[1].mean())
