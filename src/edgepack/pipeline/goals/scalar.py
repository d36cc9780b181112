"""One scalar searched until a size or a gate is met: what a ladder of types is to `goals`, a scale is to the wire.

It knows of files only what they weigh and how they were judged; making them is `pipeline.makers.wire`'s.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from edgepack.errors import CheckFailedError, NumericError, UsageError
from edgepack.pipeline.goals.judging import margin
from edgepack.quant.wire.search import TOLERANCE, Search

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.pipeline.goals.judging import Judge, Rung

_TRIES = 9
_NEAR = 0.1  # of a wanted size: from there on a search moves only the scale
_FIRST_KL = 0.004  # the predicted divergence of the first try
_LEAST_KL, _MOST_KL = 1e-6, 1.5  # predicted divergences between which a scale makes sense
_CURVE = 24  # pieces of the curve on which sizes are predicted
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

    def predicted_bytes(self, scales: Sequence[float]) -> Sequence[float]:
        """About what archives at some scales take, without making any."""
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
    levels = [low + (high - low) * step / _CURVE for step in range(_CURVE + 1)]
    curve = zip(levels, maker.predicted_bytes([2.0**level for level in levels]), strict=True)
    search = Search(wanted, low, high, tuple(curve))
    for earlier in maker.trials:
        search = search.after(math.log2(earlier.scale), earlier.archive_bytes)
    for _ in range(_TRIES):
        if search.hit:
            break
        at = search.next_level()
        try:
            trial = maker.attempt(2.0**at)
        except NumericError:  # so fine that some rows do not fit the host
            if at >= high:
                raise
            search = search.unfit(at)
            continue
        search = search.after(at, trial.archive_bytes)
        if abs(trial.archive_bytes - wanted) < _NEAR * wanted:
            maker.hold_still(True)
        if search.hopeless:
            raise UsageError(
                f"--max-size: expected at least {trial.archive_bytes} bytes, the least that this model packs to"
                f" on host {maker.host}, got {wanted}"
            )
    if search.best is None:
        raise CheckFailedError(f"--max-size: no scale gave at most {wanted} bytes in {_TRIES} tries")
    level = search.best.level
    return _repeat(maker, min(maker.trials, key=lambda trial: abs(math.log2(trial.scale) - level)))


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
        raise CheckFailedError(f"no scale on host {maker.host} reaches the goal: use a larger host or a lower goal")
    return _repeat(maker, best), tuple(tried)


def _repeat(maker: ScalarMaker, best: Attempt) -> Attempt:
    return best if maker.trials[-1] is best else maker.attempt(best.scale)


__all__ = ["TOLERANCE", "Attempt", "ScalarMaker", "scale_of", "scale_to_gates", "scale_to_size"]
