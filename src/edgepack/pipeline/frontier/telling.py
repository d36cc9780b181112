"""Tells how a study goes on: each point in a line, and how long the rest will take.

How long points take is `forecast`'s.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edgepack.errors import EdgepackError
from edgepack.pipeline.frontier.forecast import Forecast, forecast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.pipeline.frontier.points import Point, Spec
    from edgepack.pipeline.frontier.request import StudyRequest


class StudyClock:
    """Tells how long a study takes, before and between its points."""

    def __init__(self, request: StudyRequest, specs: Sequence[Spec], done: Sequence[str]) -> None:
        self._request, self._count, self._number = request, len(specs), len(done)
        self._expected = self._spent = 0.0
        self._left: Forecast | None = None
        if len(done) == len(specs):
            return
        try:
            self._left = forecast(request, specs, done)
        except EdgepackError as error:
            request.tell(f"how long it takes cannot be foretold: {error}")
        else:
            request.tell(f"{len(specs) - len(done)} points, about {told_time(self._left.seconds)}")
        self._last = time.monotonic()

    def tell(self, spec: Spec, point: Point) -> None:
        """A point is done."""
        now = time.monotonic()
        self._spent, self._number, self._last = self._spent + now - self._last, self._number + 1, now
        self._request.tell(f"{self._number} of {self._count}: {told_point(point)}{self._remaining(spec)}")

    def _remaining(self, spec: Spec) -> str:
        """What is left, by how the forecast did so far."""
        if self._left is None:
            return ""
        self._expected += self._left.points.pop(spec.id, 0.0) + sum(self._left.once.values())
        self._left.once = {}
        if not self._left.points or not self._expected:
            return ""
        return f"; about {told_time(self._left.seconds * self._spent / self._expected)} left"


def told_point(point: Point) -> str:
    """A point in a line."""
    if point.failed:
        return f"{point.id}: not made: {point.failed}"
    shares = ", ".join(f"{name} KL {each.mean_kl:.4f} top-1 {each.top1:.4f}" for name, each in point.texts.items())
    return f"{point.id}: {point.file_bytes / 1e6:.2f} MB, ships in {point.shipped_bytes / 1e6:.2f} MB; {shares}"


def told_time(seconds: float) -> str:
    """A duration for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
