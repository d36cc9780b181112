"""Three ways from what an answer's log-probabilities say to how often such answers are right; applied, not fitted.

Fitting needs scipy and is `pipeline.confidence.fitting`'s; this is arithmetic that every device has.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edgepack.edge.confidence.features import NAMES, log_shares
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from edgepack.edge.confidence.features import Observation

_MOST_KNOTS = 4096
LEAST_TEMPERATURE, LARGEST_TEMPERATURE = 0.01, 100.0


class Calibrator(Protocol):
    """From an observation to a confidence."""

    @property
    def method(self) -> str:
        """Its name in a record."""
        ...

    def confidence(self, seen: Observation) -> float:
        """How likely the answer is right, 0 to 1."""
        ...


@dataclass(frozen=True)
class Raw:
    """No calibration: what the log-probabilities alone say. The yardstick of the others; no file stores it."""

    @property
    def method(self) -> str:
        """As `Calibrator.method`."""
        return "raw"

    def confidence(self, seen: Observation) -> float:
        """As `Calibrator.confidence`."""
        return seen.features.raw


@dataclass(frozen=True)
class Temperature:
    """Every logit divided by one number (Guo et al., arXiv 1706.04599).

    Of choices, the softmax of their log-likelihoods / temperature; of a written answer, whose other answers nobody
    counts, the geometric mean of its tokens' probabilities to the power 1 / temperature.

    Attributes:
        temperature: 0.01 to 100; 1 changes nothing, more brings choices closer together.
    """

    temperature: float

    @property
    def method(self) -> str:
        """As `Calibrator.method`."""
        return "temperature"

    def confidence(self, seen: Observation) -> float:
        """As `Calibrator.confidence`."""
        if seen.scores:
            return math.exp(max(log_shares(seen.scores, self.temperature)))
        return math.exp(min(0.0, seen.features.mean / self.temperature))


@dataclass(frozen=True)
class Platt:
    """A logistic curve over the features (Platt 1999), each limited to what was seen while fitting, then scaled.

    Attributes:
        low, high: of each feature, in the order of `NAMES`: beyond them it counts as the nearer one.
        centre, scale: what is taken off, and what the rest is divided by.
        weights: of the scaled features.
        bias: the curve's place.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float

    @property
    def method(self) -> str:
        """As `Calibrator.method`."""
        return "platt"

    def confidence(self, seen: Observation) -> float:
        """As `Calibrator.confidence`."""
        total = self.bias
        for index, value in enumerate(seen.features.values):
            limited = min(max(value, self.low[index]), self.high[index])
            total += self.weights[index] * (limited - self.centre[index]) / self.scale[index]
        return _logistic(total)


@dataclass(frozen=True)
class Isotonic:
    """The rising steps that fit best (Zadrozny and Elkan 2002), over the raw confidence's odds.

    Attributes:
        odds: where confidences are known, rising.
        confidences: there, not falling; between them a straight line, beyond them the nearer one.
    """

    odds: tuple[float, ...]
    confidences: tuple[float, ...]

    @property
    def method(self) -> str:
        """As `Calibrator.method`."""
        return "isotonic"

    def confidence(self, seen: Observation) -> float:
        """As `Calibrator.confidence`."""
        at = seen.features.odds
        right = bisect_right(self.odds, at)
        if right in (0, len(self.odds)):
            return self.confidences[0 if right == 0 else -1]
        start, end = self.odds[right - 1], self.odds[right]
        share = (at - start) / (end - start)
        return self.confidences[right - 1] * (1 - share) + self.confidences[right] * share


def _logistic(value: float) -> float:
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return (part := math.exp(max(value, -700.0))) / (1 + part)


def to_object(calibrator: Calibrator) -> dict[str, Any]:
    """As JSON has it: the method's name and its numbers."""
    assert isinstance(calibrator, (Temperature, Platt, Isotonic))
    return {"method": calibrator.method, **asdict(calibrator)}


def from_object(told: object, where: str) -> Calibrator:
    """The calibrator in a record that anybody may have written.

    Raises:
        UsageError: it is none; the text names the field after `where`.
    """
    method = told.get("method") if isinstance(told, dict) else None
    if not isinstance(told, dict) or method not in ("temperature", "platt", "isotonic"):
        raise UsageError(f"{where}.method: expected temperature, platt or isotonic, got {str(method)[:40]!r}")
    if method == "temperature":
        (value,) = _numbers([told.get("temperature")], f"{where}.temperature", 1)
        if not LEAST_TEMPERATURE <= value <= LARGEST_TEMPERATURE:
            bounds = f"{LEAST_TEMPERATURE:g} to {LARGEST_TEMPERATURE:g}"
            raise UsageError(f"{where}.temperature: expected {bounds}, got {value:g}")
        return Temperature(value)
    return _platt(told, where) if method == "platt" else _isotonic(told, where)


def _platt(told: dict[str, Any], where: str) -> Platt:
    names = ("low", "high", "centre", "scale", "weights")
    lists = {name: _numbers(told.get(name), f"{where}.{name}", len(NAMES)) for name in names}
    if min(lists["scale"]) <= 0:
        raise UsageError(f"{where}.scale: expected numbers above 0, got {min(lists['scale'])}")
    if any(low > high for low, high in zip(lists["low"], lists["high"], strict=True)):
        raise UsageError(f"{where}.low: expected none above its high")
    (bias,) = _numbers([told.get("bias")], f"{where}.bias", 1)
    return Platt(**lists, bias=bias)


def _isotonic(told: dict[str, Any], where: str) -> Isotonic:
    given = told.get("odds")
    count = len(given) if isinstance(given, (list, tuple)) else 0
    if not 1 <= count <= _MOST_KNOTS:
        raise UsageError(f"{where}.odds: expected 1 to {_MOST_KNOTS} numbers, got {count}")
    odds = _numbers(given, f"{where}.odds", count)
    confidences = _numbers(told.get("confidences"), f"{where}.confidences", count)
    if any(left >= right for left, right in itertools.pairwise(odds)):
        raise UsageError(f"{where}.odds: expected rising numbers")
    falls = any(left > right for left, right in itertools.pairwise(confidences))
    if falls or confidences[0] < 0 or confidences[-1] > 1:
        raise UsageError(f"{where}.confidences: expected numbers from 0 to 1 that do not fall")
    return Isotonic(odds, confidences)


def _numbers(told: object, where: str, count: int) -> tuple[float, ...]:
    if not isinstance(told, (list, tuple)) or len(told) != count:
        raise UsageError(f"{where}: expected {count} numbers, got {type(told).__name__}")
    for value in told:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
            raise UsageError(f"{where}: expected finite numbers, got {str(value)[:40]!r}")
    return tuple(float(value) for value in told)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an integer beyond float
        return False
