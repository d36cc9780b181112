"""What a study found: its points, their fronts, and the smallest file that keeps a goal.

How points are made and measured is left to `study`, how they look to `report`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.edge.fidelity.outcome import finite
from edgepack.edge.fidelity.run import pareto_front
from edgepack.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepack.pipeline.frontier.points import Point


RESULT = "frontier.json"


@dataclass(frozen=True)
class Frontier:
    """What a study found.

    Attributes:
        model: the original's label.
        about: what the figures depend on.
        texts: name → (SHA-256, tokens scored, chunk length).
        points: in the order of the catalogue; failed ones too.
        goal: the share of equal first choices that a file should keep.
        seconds: of this run.
    """

    model: str
    about: Mapping[str, str]
    texts: Mapping[str, tuple[str, int, int]]
    points: tuple[Point, ...]
    goal: float
    seconds: float

    @property
    def measured(self) -> tuple[Point, ...]:
        """Points that exist."""
        return tuple(point for point in self.points if not point.failed)

    def mean_kl(self, point: Point) -> float:
        """Over the texts, each as much as any other."""
        return sum(each.mean_kl for each in point.texts.values()) / len(point.texts)

    def keeps(self, point: Point, *, surely: bool = False) -> bool:
        """Whether a file keeps the goal on every text; `surely`: by the lower ends of the intervals."""
        shares = (each.top1_interval[0] if surely else each.top1 for each in point.texts.values())
        return min(shares) >= self.goal

    def smallest(self, measure: str, points: Sequence[Point] | None = None) -> Point | None:
        """The file of least `shipped_bytes` or `file_bytes` that keeps the goal; None where none does."""
        kept = [point for point in (self.measured if points is None else points) if self.keeps(point)]
        return min(kept, key=lambda point: (getattr(point, measure), self.mean_kl(point)), default=None)

    def front(self, measure: str) -> frozenset[str]:
        """Ids of the points that no other one beats."""
        points = self.measured
        marks = pareto_front([getattr(p, measure) for p in points], [self.mean_kl(p) for p in points])
        return frozenset(point.id for point, marked in zip(points, marks, strict=True) if marked)

    def best_on(self, device: str) -> Point | None:
        """The most faithful file that lies wholly on a device; None where none does."""
        there = [point for point in self.measured if device in point.devices and point.devices[device].fits]
        return min(there, key=self.mean_kl, default=None)

    def as_json(self) -> dict[str, Any]:
        """What `frontier.json` holds."""
        shipped, memory = self.front("shipped_bytes"), self.front("file_bytes")
        found = {name: self.smallest(name) for name in ("shipped_bytes", "file_bytes")}
        devices = sorted({name for point in self.measured for name in point.devices})
        return finite({
            "edgepack": __version__, "model": self.model, "about": dict(self.about), "goal": self.goal,
            "texts": {name: {"sha256": sha, "tokens": tokens, "ctx": ctx}
                      for name, (sha, tokens, ctx) in self.texts.items()},
            "smallest": {name: None if point is None else point.id for name, point in found.items()},
            "devices": {name: None if (best := self.best_on(name)) is None else best.id for name in devices},
            "points": [{**point.as_json(), "on_shipped_front": point.id in shipped,
                        "on_memory_front": point.id in memory} for point in self.points],
            "seconds": round(self.seconds, 1),
        })  # fmt: skip
