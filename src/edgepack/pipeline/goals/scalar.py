"""One scalar searched until a size or a gate is met: what a ladder of types is to `goals`, a scale is to the wire.

It knows of files only what they weigh and how they were judged; making them is `pipeline.makers.wire`'s.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from edgepack.errors import CheckFailedError, NumericError, UsageError
from edgepack.pipeline.goals.judging import margin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.pipeline.goals.judging import Judge, Rung

TOLERANCE = 0.005  # of a wanted size: the archive is at most so much smaller, and never larger
_TRIES = 9
_NEAR = 0.1  # of a wanted size: from there on a search moves only the scale
_FIRST_KL = 0.004  # the predicted divergence of the first try
_LEAST_KL, _MOST_KL = 1e-6, 1.5  # predicted divergences between which a scale makes sense
_LONGEST_STEP = 3.0  # doublings of the scale between two tries that gates judge


class Attempt(Protocol):
    """One scale tried."""

    @property
    def scale(self) -> float:
        """The scalar."""
        ...

    @property
    def archive_bytes(self) -> int:
        """Of the archive."""
        ...


class ScalarMaker(Protocol):
    """Makes an archive at any scale; a larger scale is smaller and less faithful."""

    @property
    def weights(self) -> int:
        """Weights that the scale concerns."""
        ...

    @property
    def trials(self) -> Sequence[Attempt]:
        """What was tried so far, in order; the last one's files exist."""
        ...

    @property
    def host(self) -> str:
        """What holds the file at run time, for messages."""
        ...

    def attempt(self, scale: float) -> Attempt:
        """Make the archive at one scale; raises NumericError for one that is too fine."""
        ...

    def hold_still(self, held: bool) -> None:
        """Whether later tries change nothing but the scale."""
        ...

    def judge_last(self, judge: Judge) -> Rung:
        """Hold the last try against the original."""
        ...


def scale_of(divergence: float, weights: int) -> float:
    """The scale at which rounding alone is predicted to cost `divergence` nats a token."""
    return math.sqrt(24 * divergence / weights)


def _bounds(maker: ScalarMaker) -> tuple[float, float]:
    """Logarithms of the finest and of the coarsest scale."""
    low, high = (math.log2(scale_of(divergence, maker.weights)) for divergence in (_LEAST_KL, _MOST_KL))
    return low, high


def scale_to_size(maker: ScalarMaker, wanted: int) -> Attempt:
    """The finest scale whose archive has at most `wanted` bytes, and at least 1 - TOLERANCE of them.

    Raises:
        UsageError: even the coarsest scale gives more; the text says how much.
        CheckFailedError: no scale gave so few bytes.
    """
    low, high = _bounds(maker)
    maker.hold_still(False)
    best: Attempt | None = None
    reach = 0.0  # how near `low` a scale counts as the finest
    aim = wanted * (1 - TOLERANCE / 2)
    per_doubling = _slope(maker.trials, maker.weights / 8)  # bytes; less at low rates
    at = min(max(_start(maker, aim, per_doubling), low), high)
    for _ in range(_TRIES):
        try:
            trial = maker.attempt(2.0**at)
        except NumericError:  # so fine that some rows do not fit the host
            if at >= high:
                raise
            low, at, reach = at, min(at + 1.0, high), 0.5
            continue
        excess = trial.archive_bytes - aim
        if abs(excess) < _NEAR * wanted:
            maker.hold_still(True)
        if trial.archive_bytes <= wanted and (best is None or trial.scale <= best.scale):
            best = trial
            if trial.archive_bytes >= wanted * (1 - TOLERANCE):
                return trial
        if excess > 0 and at >= high:
            raise UsageError(
                f"--max-size: expected at least {trial.archive_bytes} bytes, the least that this model packs to"
                f" on host {maker.host}, got {wanted}"
            )
        if excess < 0 and at <= low + reach:
            return trial
        low, high = (max(low, at), high) if excess > 0 else (low, min(high, at))
        per_doubling = _slope(maker.trials, per_doubling)
        at = min(max(at + excess / per_doubling, low), high)
    if best is None:
        raise CheckFailedError(f"--max-size: no scale gave at most {wanted} bytes in {_TRIES} tries")
    return _repeat(maker, best)


def scale_to_gates(maker: ScalarMaker, judge: Judge) -> tuple[Attempt, tuple[Rung, ...]]:
    """The coarsest scale whose file clears the gates, and all that was judged.

    Raises:
        CheckFailedError: no scale passes.
    """
    # Divergence grows with the square of the scale, disagreement with the scale itself.
    exponent = 2.0 if judge.gates.min_agreement is None else 1.0
    low, high = _bounds(maker)
    at, best, tried = math.log2(scale_of(_FIRST_KL, maker.weights)), None, []
    for _ in range(_TRIES):
        trial = maker.attempt(2.0**at)
        tried.append(maker.judge_last(judge))
        leeway = margin(tried[-1].validation, judge.gates)
        if tried[-1].passed:
            best = trial
            if leeway < 1.05:
                return trial, tuple(tried)
        elif at <= low + 1e-9:
            break
        low, high = (max(low, at), high) if tried[-1].passed else (low, min(high, at))
        step = math.log2(max(leeway, 1e-3)) / exponent
        following = at + max(-_LONGEST_STEP, min(step * 0.97, _LONGEST_STEP))
        at = following if low < following < high else (low + high) / 2
        if high - low < 0.02:
            break
    if best is None:
        raise CheckFailedError(
            f"wire: no scale on host {maker.host} reaches the goal: use a larger host or a lower goal"
        )
    return _repeat(maker, best), tuple(tried)


def _start(maker: ScalarMaker, wanted: float, per_doubling: float) -> float:
    """The logarithm of the scale to try first: from the nearest trial so far."""
    if not maker.trials:
        return math.log2(scale_of(_FIRST_KL, maker.weights))
    nearest = min(maker.trials, key=lambda trial: abs(trial.archive_bytes - wanted))
    return math.log2(nearest.scale) + (nearest.archive_bytes - wanted) / per_doubling


def _slope(trials: Sequence[Attempt], default: float) -> float:
    """Bytes that a doubling of the scale saves, from the last two trials."""
    if len(trials) < 2:
        return default
    first, second = trials[-2:]
    doublings = math.log2(second.scale / first.scale)
    saved = first.archive_bytes - second.archive_bytes
    return max(saved / doublings, default / 8) if abs(doublings) > 1e-9 else default


def _repeat(maker: ScalarMaker, best: Attempt) -> Attempt:
    return best if maker.trials[-1] is best else maker.attempt(best.scale)
