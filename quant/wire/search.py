"""Which scale to try next so that an archive gets a wanted size: the sizes tried so far, on a smooth curve.

Bytes against the logarithm of the scale are smooth: a bit a weight and doubling at high rates, less where weights
become zeros. One rounding gives the level, two the slope, three the bend; what was predicted from a sample counts as
the first guess of slope and bend. Rounding and packing are the caller's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

TOLERANCE = 0.005  # of a wanted size: the archive is at most so much smaller, and never larger
_AIM = 0.4  # of the tolerance: how far below the wanted size a guess aims
_TILT = 0.1  # of a logarithm a level: what a line beyond all trials may change of the predicted curve
_EDGE = 0.98  # of the way to a bound that has been tried: a guess goes no nearer


@dataclass(frozen=True)
class Measured:
    """One scale and what it gave.

    Attributes:
        level: log2 of the scale.
        bytes: of the archive.
    """

    level: float
    bytes: int


@dataclass(frozen=True)
class Search:
    """A search for the finest scale whose archive has at most `wanted` bytes, and at least 1 - TOLERANCE of them.

    Attributes:
        wanted: bytes.
        low: the finest level that makes sense; it is raised where rows do not fit the host.
        high: the coarsest.
        curve: predicted (level, bytes), levels increasing: their differences are trusted, not their values.
        tried: so far, in order.
    """

    wanted: int
    low: float
    high: float
    curve: tuple[tuple[float, float], ...]
    tried: tuple[Measured, ...] = ()

    def after(self, level: float, size: int) -> Search:
        """The search with one more scale tried."""
        return replace(self, tried=(*self.tried, Measured(level, size)))

    def unfit(self, level: float, step: float = 1.0) -> Search:
        """The search after a level turned out too fine for the host."""
        return replace(self, low=min(level + step, self.high))

    @property
    def best(self) -> Measured | None:
        """The tried one that gave most bytes, of those that gave no more than is wanted; the finer of two."""
        fitting = [item for item in self.tried if item.bytes <= self.wanted]
        return max(fitting, key=lambda item: (item.bytes, -item.level), default=None)

    @property
    def hit(self) -> bool:
        """Whether the best is within the tolerance, or the finest that there is."""
        best = self.best
        return best is not None and (
            best.bytes >= self.wanted * (1 - TOLERANCE) or best.level <= self.low + 1e-9 or self.saturated
        )

    @property
    def saturated(self) -> bool:
        """Whether a finer scale gave no more bytes, all below what is wanted: the host's reach decides then."""
        levels = sorted(self.tried, key=lambda item: item.level)
        return any(a.bytes <= b.bytes <= self.wanted for a, b in pairwise(levels))

    @property
    def hopeless(self) -> bool:
        """Whether even the coarsest level gave too much."""
        return any(item.level >= self.high - 1e-9 and item.bytes > self.wanted for item in self.tried)

    def next_level(self) -> float:
        """The level to try: where the predicted curve, moved and bent through what was tried, meets the aim."""
        aim = self.wanted * (1 - _AIM * TOLERANCE)
        above = max((item.level for item in self.tried if item.bytes > self.wanted), default=None)
        below = min((item.level for item in self.tried if item.bytes <= self.wanted), default=None)
        lowest = self.low if above is None else above
        highest = self.high if below is None else below
        guess = self._crossing(aim, lowest, highest)
        if above is not None and below is not None:  # both ends are known: stay clear of them
            middle, room = (above + below) / 2, _EDGE * (below - above) / 2
            return middle if self._stuck else min(max(guess, middle - room), middle + room)
        return guess

    @property
    def _stuck(self) -> bool:
        """Whether the last two tries were off to the same side, the last hardly less: no smooth curve goes through."""
        if len(self.tried) < 2:
            return False
        before, last = (item.bytes - self.wanted for item in self.tried[-2:])
        return before * last > 0 and abs(last) > abs(before) / 2

    def predicted(self, level: float) -> float:
        """Bytes at a level: the curve's, corrected by the ratios that were found where something was tried."""
        return self._curve_at(level) * math.exp(self._correction(level))

    def _crossing(self, aim: float, low: float, high: float) -> float:
        """The level at which `predicted` is `aim`, by bisection; the nearer end where it is outside."""
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.predicted(middle) > aim else (low, middle)
        return (low + high) / 2

    def _curve_at(self, level: float) -> float:
        """The curve between its points, and straight on beyond them, but never below a thousandth of its least."""
        for (x0, y0), (x1, y1) in pairwise(self.curve):
            if level <= x1 or x1 == self.curve[-1][0]:
                return max(y0 + (y1 - y0) * (level - x0) / (x1 - x0), self.curve[-1][1] * 1e-3)
        return self.curve[0][1]

    def _correction(self, level: float) -> float:
        """Logarithm of found over predicted: a line through the two nearest trials, and on beyond the outer ones."""
        known = sorted(
            (item.level, math.log(item.bytes / self._curve_at(item.level))) for item in self.tried if item.bytes > 0
        )
        if len(known) < 2:
            return known[0][1] if known else 0.0
        lines = list(pairwise(known))
        (x0, y0), (x1, y1) = next((line for line in lines if level <= line[1][0]), lines[-1])
        slope = (y1 - y0) / max(x1 - x0, 1e-6)
        if not x0 <= level <= x1:
            slope = min(max(slope, -_TILT), _TILT)
        return y0 + slope * (level - x0) if level <= x1 else y1 + slope * (level - x1)
