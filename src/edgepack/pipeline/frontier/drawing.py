"""A frontier as SVG: divergence against shipped bytes and against memory, a row a text, devices' budgets as lines.

Axes and frame are `edge.fidelity.report.charts`'; what is drawn was measured by a study.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from edgepack.edge.fidelity.report.charts import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Axis, grid, svg, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.pipeline.frontier.found import Frontier
    from edgepack.pipeline.frontier.points import Point

PANEL = 340  # height of one chart
MEASURES = {"shipped_bytes": "shipped, MB", "file_bytes": "in memory, MB"}
_COLOURS = ("#8a939c", "#3d4650", "#17703c", "#1f6feb", "#7a3fb8", "#c2410c", "#b8860b", "#0f8b8d")
_LETTER, _LINE = 6.5, 10.0  # about the size of a letter
STYLE = (
    "<style>text{font:11px sans-serif;fill:#57606a}.grid{stroke:#d0d7de;stroke-width:1}"
    ".budget{stroke:#b3261e;stroke-dasharray:4 3}</style>"
)


def colours(found: Frontier) -> dict[str, str]:
    """Family → colour, in the order of the points."""
    families = list(dict.fromkeys(point.family for point in found.measured))
    return {family: _COLOURS[index % len(_COLOURS)] for index, family in enumerate(families)}


def panel(found: Frontier, measure: str, name: str) -> str:
    """One chart: a text's divergence, logarithmic, against `shipped_bytes` or `file_bytes`; families are joined."""
    points = [point for point in found.measured if name in point.texts]
    x, y = _axes(points, measure, name)
    parts = [grid(y), *(_budgets(found, points, x) if measure == "file_bytes" else [])]
    labels = _Labels()
    for family, colour in colours(found).items():
        members = sorted((p for p in points if p.family == family), key=lambda p: (getattr(p, measure), -_kl(p, name)))
        places = [(x.at(getattr(p, measure) / 1e6), y.at(_kl(p, name))) for p in members]
        line = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-opacity=".45" points="{line}"/>')
        for point, (px, py) in zip(members, places, strict=True):
            tip = f"{point.id}: {getattr(point, measure) / 1e6:,.2f} MB, KL {_kl(point, name):.4g}"
            parts.append(
                f'<circle fill="{colour}" cx="{px:.1f}" cy="{py:.1f}" r="3.5"><title>{escape(tip)}</title></circle>'
            )
            parts += labels.at(px + 6, py - 4, point.label)
    low = PANEL - BOTTOM
    parts += [text(x.at(tick), low + 16, f"{tick:g}", "middle") for tick in x.ticks()]
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, low + 30, f"{MEASURES[measure]}; {name}: mean KL, nats", "middle"))
    return svg(parts, f"mean KL on {name} against {MEASURES[measure]}", PANEL)


def picture(found: Frontier) -> str:
    """All charts and the legend as one SVG that stands by itself."""
    names = list(found.texts)
    parts = [STYLE, '<rect width="100%" height="100%" fill="#fff"/>', _legend(found)]
    for row, name in enumerate(names):
        for column, measure in enumerate(MEASURES):
            inner = panel(found, measure, name).partition(">")[2].removesuffix("</svg>")
            parts.append(f'<g transform="translate({column * WIDTH} {24 + row * PANEL})">{inner}</g>')
    size = f'viewBox="0 0 {2 * WIDTH} {24 + PANEL * len(names)}"'
    told = escape(f"divergence from {found.model} against bytes", quote=True)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{told}">{"".join(parts)}</svg>\n'


class _Labels:
    """Labels of one chart; one that would lie on another is left out: the pointer shows it."""

    def __init__(self) -> None:
        self._taken: list[tuple[float, float, float]] = []

    def at(self, x: float, y: float, label: str) -> list[str]:
        """The label's text from (x, y) on, or none."""
        end = x + _LETTER * len(label)
        if any(start < end and x < stop and abs(y - line) < _LINE for start, stop, line in self._taken):
            return []
        self._taken.append((x, end, y))
        return [text(x, y, label, "start")]


def _legend(found: Frontier) -> str:
    parts, at = [], LEFT
    for family, colour in colours(found).items():
        parts.append(f'<circle fill="{colour}" cx="{at}" cy="12" r="4"/>')
        parts.append(text(at + 8, 16, family, "start"))
        at += 24 + 7 * len(family)
    return "".join(parts)


def _axes(points: Sequence[Point], measure: str, name: str) -> tuple[Axis, Axis]:
    sizes = [getattr(point, measure) / 1e6 for point in points]
    spread = max(sizes) - min(sizes) or max(sizes)
    x = Axis(max(0.0, min(sizes) - 0.06 * spread), max(sizes) + 0.12 * spread, LEFT, WIDTH - RIGHT)
    divergences = [_kl(point, name) for point in points]
    return x, Axis(min(divergences) / 1.6, max(divergences) * 1.6, PANEL - BOTTOM, TOP, logarithmic=True)


def _budgets(found: Frontier, points: Sequence[Point], x: Axis) -> list[str]:
    """A line for each device whose budget lies within the chart."""
    parts = []
    for device in dict.fromkeys(name for point in points for name in point.devices):
        budget = budget_on(found, device) / 1e6
        if x.low <= budget <= x.high:
            at = x.at(budget)
            parts.append(f'<line class="budget" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{PANEL - BOTTOM}"/>')
            parts.append(text(at - 4, TOP + 10, device, "end"))
    return parts


def budget_on(found: Frontier, device: str) -> int:
    """Bytes that a file of this model may have on a device: the least that any of the points leaves."""
    return min(point.devices[device].file_budget for point in found.measured if device in point.devices)


def _kl(point: Point, name: str) -> float:
    value = point.texts[name].mean_kl
    return max(value, 1e-7) if math.isfinite(value) else 1e2
