"""Fits calibrators on one half of the answers and judges them on the other; needs scipy, which no device does.

Sources: temperature, Guo et al. (arXiv 1706.04599); logistic curve with smoothed targets, Platt (1999) and Lin et al.
(2007); rising steps, Zadrozny and Elkan (2002).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from edgepack.edge.confidence.calibrators import (
    LARGEST_TEMPERATURE,
    LEAST_TEMPERATURE,
    Calibrator,
    Isotonic,
    Platt,
    Temperature,
)
from edgepack.errors import CalibrationError, DependencyError
from edgepack.pipeline.confidence.metrics import log_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from edgepack.pipeline.confidence.asking import Answered

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

Method = Literal["temperature", "platt", "isotonic"]
METHODS: tuple[Method, ...] = get_args(Method)
LEAST_QUESTIONS = 100
LEAST_OF_A_CLASS = 10  # right answers, and wrong ones
FOLDS = 5
# Of the squared weights: from nearly none to so much that the share of right answers is all that is left.
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_LEAST_P = 1e-9


@dataclass(frozen=True)
class Fit:
    """A calibrator and what it says of the answers that it was fitted on, each by one that had not seen it.

    Attributes:
        calibrator: fitted on all of them.
        unseen: float64 [n], confidences by calibrators fitted on the other folds.
        loss: of `unseen`, nats an answer.
    """

    calibrator: Calibrator
    unseen: Floats
    loss: float


def require_scipy() -> None:
    """Raise DependencyError, with the command that helps, where scipy is not installed."""
    if find_spec("scipy") is None:
        raise DependencyError("calibrate needs scipy: pip install 'edgepack[calibrate]'")


def check_count(count: int, what: str) -> None:
    """Refuse fewer than `LEAST_QUESTIONS`; raises CalibrationError."""
    if count < LEAST_QUESTIONS:
        raise CalibrationError(f"{what}: expected at least {LEAST_QUESTIONS} questions with an answer, got {count}")


def check_answers(answers: Sequence[Answered], what: str) -> None:
    """Refuse what no calibration can be fitted on.

    Raises:
        CalibrationError: fewer than `LEAST_QUESTIONS`, or fewer than `LEAST_OF_A_CLASS` right or wrong ones.
    """
    right = sum(one.right for one in answers)
    wrong = len(answers) - right
    check_count(len(answers), what)
    if min(right, wrong) < LEAST_OF_A_CLASS:
        raise CalibrationError(
            f"{what}: expected at least {LEAST_OF_A_CLASS} right and {LEAST_OF_A_CLASS} wrong answers, "
            f"got {right} and {wrong}: confidence in answers of one kind cannot be fitted"
        )


def check_half(answers: Sequence[Answered], what: str) -> None:
    """Refuse a half without enough answers of a kind; raises CalibrationError."""
    right = sum(one.right for one in answers)
    least = LEAST_OF_A_CLASS // 4
    if min(right, len(answers) - right) < least:
        raise CalibrationError(
            f"{what}: expected at least {least} right and {least} wrong answers on each half, got {right} and "
            f"{len(answers) - right} on one: give more questions"
        )


def halves(groups: Sequence[int], seed: int) -> tuple[list[int], list[int]]:
    """Indices of the answers to fit on and of those to judge by, whole groups on one side, about half on each."""
    names = sorted(set(groups))
    order = np.random.default_rng(seed).permutation(len(names))
    sizes = dict.fromkeys(names, 0)
    for group in groups:
        sizes[group] += 1
    fitting, count = set(), 0
    for index in order.tolist():
        if count + sizes[names[index]] / 2 <= len(groups) / 2:
            fitting.add(names[index])
            count += sizes[names[index]]
    chosen = [index for index, group in enumerate(groups) if group in fitting]
    return chosen, [index for index, group in enumerate(groups) if group not in fitting]


def confidences(calibrator: Calibrator, answers: Sequence[Answered]) -> Floats:
    """What a calibrator says of each answer, float64 [n]."""
    return np.array([calibrator.confidence(one.seen) for one in answers])


def truths(answers: Sequence[Answered]) -> Bools:
    """Which answers are right, bool [n]."""
    return np.array([one.right for one in answers], dtype=bool)


def fit(method: Method, answers: Sequence[Answered], seed: int) -> Fit:
    """Fit a method; its strength where it has one is chosen by cross-validation over groups."""
    if method != "platt":
        make = fit_temperature if method == "temperature" else fit_isotonic
        unseen = _unseen(make, answers, seed)
        return Fit(make(answers), unseen, log_loss(unseen, truths(answers)))
    tried = []
    for penalty in _PENALTIES:
        unseen = _unseen(lambda some, penalty=penalty: fit_platt(some, penalty), answers, seed)  # type: ignore[misc]
        tried.append((log_loss(unseen, truths(answers)), penalty, unseen))
    loss, penalty, unseen = min(tried, key=lambda one: one[:2])
    return Fit(fit_platt(answers, penalty), unseen, loss)


def _unseen(make: Callable[[Sequence[Answered]], Calibrator], answers: Sequence[Answered], seed: int) -> Floats:
    """Confidences by calibrators that were fitted without the answer's fold."""
    names, numbers = np.unique([one.group for one in answers], return_inverse=True)
    folds = np.random.default_rng(seed).permutation(len(names))[numbers] % FOLDS
    found = np.empty(len(answers))
    for fold in range(FOLDS):
        inside = folds == fold
        if not inside.any():
            continue
        rest = [one for one, left in zip(answers, inside, strict=True) if not left]
        here = [one for one, left in zip(answers, inside, strict=True) if left]
        found[inside] = confidences(make(rest or answers), here)
    return found


def fit_temperature(answers: Sequence[Answered]) -> Temperature:
    """The temperature with the least negative log-likelihood, by L-BFGS over its logarithm.

    Of choices the likelihood is that of the right one; of written answers, that each is right or wrong.
    """
    from scipy.optimize import minimize

    loss = _choice_loss(answers) if answers[0].seen.scores else _written_loss(answers)
    bounds = [(float(np.log(LEAST_TEMPERATURE)), float(np.log(LARGEST_TEMPERATURE)))]
    found = minimize(lambda x: loss(float(np.exp(x[0]))), np.zeros(1), method="L-BFGS-B", bounds=bounds)
    # The bounds once more: the exponential of a logarithm may be a rounding off.
    return Temperature(float(np.clip(np.exp(found.x[0]), LEAST_TEMPERATURE, LARGEST_TEMPERATURE)))


def _choice_loss(answers: Sequence[Answered]) -> Callable[[float], float]:
    most = max(len(one.seen.scores) for one in answers)
    scores = np.full((len(answers), most), -np.inf)
    for row, one in zip(scores, answers, strict=True):
        row[: len(one.seen.scores)] = one.seen.scores
    right = np.array([one.right_choice for one in answers])

    def loss(temperature: float) -> float:
        scaled = scores / temperature
        top = scaled.max(axis=1, keepdims=True)
        total = top[:, 0] + np.log(np.exp(scaled - top).sum(axis=1))
        return float((total - scaled[np.arange(len(right)), right]).mean())

    return loss


def _written_loss(answers: Sequence[Answered]) -> Callable[[float], float]:
    mean = np.array([one.seen.features.mean for one in answers])
    right = truths(answers)

    def loss(temperature: float) -> float:
        log_p = np.minimum(mean / temperature, -_LEAST_P)
        return float(-np.where(right, log_p, np.log(-np.expm1(log_p))).mean())

    return loss


def fit_platt(answers: Sequence[Answered], penalty: float) -> Platt:
    """A logistic regression on the features, by L-BFGS.

    Minimises mean log-loss + penalty / 2 · ‖weights‖² over scaled features; the bias is free. Targets are smoothed as
    Platt has them, so that a feature that divides the classes leaves weights finite.
    """
    from scipy.optimize import minimize

    table = np.array([one.seen.features.values for one in answers])
    centre, scale = table.mean(axis=0), table.std(axis=0)
    scale[scale < _LEAST_P] = 1.0  # a feature that is the same everywhere
    scaled = (table - centre) / scale
    targets = _smoothed(truths(answers))

    def loss(weights: Floats) -> tuple[float, Floats]:
        z = scaled @ weights[:-1] + weights[-1]
        off = _sigmoid(z) - targets
        value = float(np.mean(np.logaddexp(0, z) - targets * z)) + penalty / 2 * float(weights[:-1] @ weights[:-1])
        return value, np.append(scaled.T @ off / len(off) + penalty * weights[:-1], off.mean())

    found = minimize(loss, np.zeros(table.shape[1] + 1), jac=True, method="L-BFGS-B").x
    low, high = table.min(axis=0), table.max(axis=0)
    parts = {"low": low, "high": high, "centre": centre, "scale": scale, "weights": found[:-1]}
    return Platt(**{name: tuple(part.tolist()) for name, part in parts.items()}, bias=float(found[-1]))


def _smoothed(right: Bools) -> Floats:
    """Platt's targets: (n₊ + 1)/(n₊ + 2) and 1/(n₋ + 2) in place of 1 and 0."""
    positives, negatives = int(right.sum()), int((~right).sum())
    return np.where(right, (positives + 1) / (positives + 2), 1 / (negatives + 2))


def _sigmoid(z: Floats) -> Floats:
    """The logistic function, which overflows nowhere."""
    return np.exp(-np.logaddexp(0, -z))


def fit_isotonic(answers: Sequence[Answered]) -> Isotonic:
    """The rising steps over the raw confidence's odds with the least squared error, by pooling adjacent violators.

    No step is surer than n answers allow: 1 / (n + 2) and (n + 1) / (n + 2) are the ends.
    """
    from scipy.optimize import isotonic_regression

    odds = np.array([one.seen.features.odds for one in answers])
    values, inverse, counts = np.unique(odds, return_inverse=True, return_counts=True)
    share = np.bincount(inverse, weights=truths(answers)) / counts
    fitted = isotonic_regression(share, weights=counts)
    blocks, least = fitted.blocks, 1 / (len(answers) + 2)
    knots: dict[float, float] = {}
    for start, end in itertools.pairwise(blocks):
        held = min(max(float(fitted.x[start]), least), 1 - least)
        knots[float(values[start])] = knots[float(values[end - 1])] = held
    return Isotonic(tuple(knots), tuple(knots.values()))


def choose(fits: dict[Method, Fit]) -> Method:
    """The method whose confidences of unseen answers lose the least."""
    return min(fits, key=lambda method: fits[method].loss)
