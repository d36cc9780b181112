"""Draws what caches cost against their bytes a token, as an SVG written by hand: no plotting library is needed."""

from __future__ import annotations

from html import escape
from math import ceil, floor, log2, log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    Points = Sequence[tuple[str, float, float, str]]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 860, 440, 70, 50, 30, 60
_COLOURS = {"type": "#246", "not turned": "#c33", "dimensions": "#284"}
_TOLD = {
    "type": "llama.cpp's types",
    "not turned": "the same without its Hadamard rotation",
    "dimensions": "k dimensions of K before rotation and of V, float16, not trained",
}


def _panel(title: str, points: Points, top: int) -> list[str]:
    """One chart: logarithmic axes, a labelled dot for each cache, a colour for each kind."""
    low, high = floor(log2(min(x for _n, x, _y, _k in points))), ceil(log2(max(x for _n, x, _y, _k in points)))
    bottom, ceiling = floor(log10(min(y for _n, _x, y, _k in points))), ceil(log10(max(y for _n, _x, y, _k in points)))

    def across(size: float) -> float:
        return _LEFT + (log2(size) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def down(kl: float) -> float:
        return _TOP + (ceiling - log10(kl)) / max(ceiling - bottom, 1) * (_HEIGHT - _BOTTOM - _TOP)

    parts = [f'<g transform="translate(0 {top})"><text x="{_LEFT}" y="18" font-weight="bold">{escape(title)}</text>']
    for power in range(low, high + 1):
        x = across(2.0**power)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{2**power:,}</text>')
    for decade in range(bottom, ceiling + 1):
        y = down(10.0**decade)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**decade:g}</text>')
    for name, size, kl, kind in points:
        x, y, colour = across(size), down(kl), _COLOURS[kind]
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        if kind != "not turned":
            parts.append(f'<text x="{x + 6:.1f}" y="{y - 4:.1f}" font-size="10" fill="{colour}">{escape(name)}</text>')
    parts += _legend({kind for _n, _x, _y, kind in points})
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 12}" text-anchor="middle">bytes a token, all layers</text></g>')
    return parts


def _legend(kinds: set[str]) -> list[str]:
    parts = []
    for row, kind in enumerate(kind for kind in _COLOURS if kind in kinds):
        y = _HEIGHT - _BOTTOM - 14 - 16 * row
        parts.append(f'<circle cx="{_LEFT + 12}" cy="{y - 4}" r="4" fill="{_COLOURS[kind]}"/>')
        parts.append(f'<text x="{_LEFT + 22}" y="{y}" fill="{_COLOURS[kind]}">{escape(_TOLD[kind])}</text>')
    return parts


def write_plot(path: Path, models: Mapping[str, Points]) -> None:
    """Write one chart a model of (cache, bytes a token, KL in nats to the f16 cache, kind).

    Args:
        path: the SVG.
        models: name → its caches; a KL above 0 each.
    """
    panels = [
        _panel(f"{name}: KL to the f16 cache, nats a token", points, number * _HEIGHT)
        for number, (name, points) in enumerate(models.items())
    ]
    body = "\n".join(part for panel in panels for part in panel)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT * len(panels)}"'
        f' font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )
