"""Charts of a report as SVG text whose colours the page decides; it knows nothing of where numbers come from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 34


@dataclass(frozen=True)
class Point:
    """A labelled point of a scatter chart; `marked` ones are joined by a line."""

    x: float
    y: float
    label: str
    marked: bool


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis from `low` to `high` on the page's `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Where `value` lies on the page."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.logarithmic else (self.low, self.high)
        value = math.log10(max(value, self.low)) if self.logarithmic else value
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers within the axis, about five."""
        if self.logarithmic:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            decades = [10.0**power for power in range(first, last + 1)]
            if len(decades) >= 3:
                return decades
            steps = [m * 10.0**p for p in range(first - 1, last + 1) for m in (1, 2, 3, 5)]
            return [step for step in steps if self.low <= step <= self.high]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 2 or 1))
        while (self.high - self.low) / step > 6:
            step *= 2 if str(step).lstrip("0.").startswith(("1", "5")) else 2.5
        return [step * n for n in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


def bars(
    values: Sequence[float],
    labels: Sequence[str],
    title: str,
    ticks: dict[int, str] | None = None,
    *,
    log: bool = False,
) -> str:
    """Vertical bars; `log` draws heights by logarithm, so that one token shows.

    Args:
        values: a bar each, not negative.
        labels: of each bar, shown under the pointer.
        title: for readers who do not see it.
        ticks: bar → what stands under it; None puts some of the labels there.
        log: a logarithmic vertical axis.
    """
    top = max([*values, 1e-12])
    low = max(min((value for value in values if value > 0), default=top) / 2, top * 1e-9) if log else 0.0
    y = Axis(low, top, HEIGHT - BOTTOM, TOP, log)
    width = (WIDTH - LEFT - RIGHT) / max(1, len(values))
    parts = [grid(y)]
    for index, value in enumerate(values):
        if value > 0:
            x, height = LEFT + index * width, HEIGHT - BOTTOM - y.at(value)
            tip = f"<title>{escape(labels[index])}: {value:,.6g}</title>"
            parts.append(
                f'<rect class="bar" x="{x + 0.5:.1f}" y="{y.at(value):.1f}" width="{max(1.0, width - 1):.1f}" '
                f'height="{max(height, 0.5):.1f}">{tip}</rect>'
            )
    every = max(1, math.ceil(len(values) / 8))
    ticks = {index: labels[index] for index in range(0, len(values), every)} if ticks is None else ticks
    parts += [text(LEFT + (index + 0.5) * width, HEIGHT - BOTTOM + 16, told, "middle") for index, told in ticks.items()]
    return svg(parts, title)


def line(values: Sequence[tuple[float, float]], title: str) -> str:
    """A line through points (x, share) whose vertical axis ends at 1."""
    low = min([y for _x, y in values if not math.isnan(y)] or [0.0])
    y = Axis(max(0.0, low - 0.1 * (1 - low) - 1e-3), 1.0, HEIGHT - BOTTOM, TOP)
    x = Axis(values[0][0], values[-1][0] or 1, LEFT, WIDTH - RIGHT) if values else Axis(0, 1, LEFT, WIDTH - RIGHT)
    points = " ".join(f"{x.at(px):.1f},{y.at(py):.1f}" for px, py in values if not math.isnan(py))
    parts = [grid(y, percent=True), f'<polyline class="line" points="{points}"/>']
    parts += [text(x.at(tick), HEIGHT - BOTTOM + 16, f"{tick:g}", "middle") for tick in x.ticks()]
    return svg(parts, title)


def scatter(points: Sequence[Point], title: str) -> str:
    """Points on a linear horizontal and a logarithmic vertical axis; the marked ones are joined."""
    spread = max(point.x for point in points) - min(point.x for point in points) or points[0].x or 1
    x = Axis(max(0.0, min(p.x for p in points) - 0.08 * spread), max(p.x for p in points) + 0.18 * spread,
             LEFT, WIDTH - RIGHT)  # fmt: skip
    positive = [point.y for point in points if point.y > 0 and math.isfinite(point.y)] or [1e-6, 1.0]
    y = Axis(min(positive) / 2, max(positive) * 2, HEIGHT + 60 - BOTTOM, TOP, logarithmic=True)
    parts = [grid(y)]
    front = sorted((point for point in points if point.marked), key=lambda point: point.x)
    path = " ".join(f"{x.at(point.x):.1f},{y.at(point.y):.1f}" for point in front)
    parts.append(f'<polyline class="line" points="{path}"/>')
    for point in points:
        px, py = x.at(point.x), y.at(point.y)
        kind = "point front" if point.marked else "point"
        parts.append(
            f'<circle class="{kind}" cx="{px:.1f}" cy="{py:.1f}" r="4"><title>{escape(point.label)}</title></circle>'
        )
        parts.append(text(px + 7, py - 6, point.label, "start"))
    parts += [text(x.at(tick), HEIGHT + 60 - BOTTOM + 16, f"{tick:g}", "middle") for tick in x.ticks()]
    return svg(parts, title, HEIGHT + 60)


def grid(y: Axis, *, percent: bool = False) -> str:
    """Horizontal lines at the axis's round numbers, which stand left of them."""
    lines = []
    for tick in y.ticks():
        at = y.at(tick)
        told = f"{100 * tick:.4g} %" if percent else f"{tick:,.4g}"
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        lines.append(text(LEFT - 6, at + 4, told, "end"))
    return "".join(lines)


def text(x: float, y: float, told: str, anchor: str) -> str:
    """A line of text; `anchor` is start, middle or end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(told)}</text>'


def svg(parts: list[str], title: str, height: int = HEIGHT) -> str:
    """A chart of its parts; `title` is for readers who do not see it."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )
