"""Answers for tests: made of numbers, no model."""

from __future__ import annotations

import numpy as np

from edgepack.edge.confidence.features import Features, Observation
from edgepack.pipeline.confidence.asking import Answered


def written(odds: float, right: bool, number: int, *, mean: float | None = None, group: int | None = None) -> Answered:
    """A written answer of given odds."""
    log_p = float(-np.log1p(np.exp(-odds))) if mean is None else mean
    features = Features(odds, log_p, 2 * log_p, 1.0, 0.5, float(np.log(3)))
    return Answered(number, number if group is None else group, Observation(features), 2, right)


def overconfident(count: int, seed: int, power: float = 2.0) -> list[Answered]:
    """Answers whose raw confidence is p, and that are right as often as p to a power."""
    chance = np.random.default_rng(seed)
    p = chance.uniform(0.02, 0.98, count)
    return [
        written(float(np.log(one / (1 - one))), bool(chance.random() < one**power), number)
        for number, one in enumerate(p)
    ]
