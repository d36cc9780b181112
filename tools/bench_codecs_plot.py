"""Draws error against bits with the Gaussian bound, as an SVG written by hand: no plotting library is needed."""

from __future__ import annotations

from html import escape
from math import log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 860, 460, 70, 50
_BITS, _DECADES = (1.0, 9.0), (-5.0, 0.0)


def _x(bits: float) -> float:
    return _LEFT + (bits - _BITS[0]) / (_BITS[1] - _BITS[0]) * (_WIDTH - _LEFT - 20)


def _y(error: float) -> float:
    decade = max(_DECADES[0], log10(max(error, 1e-30)))
    return 30 + (_DECADES[1] - decade) / (_DECADES[1] - _DECADES[0]) * (_HEIGHT - _BOTTOM - 30)


def _panel(title: str, points: Sequence[tuple[str, float, float]], top: int) -> list[str]:
    """One chart: axes, the bound 2^(-2R), a labelled dot for each codec (ours filled)."""
    parts = [f'<g transform="translate(0 {top})"><text x="{_LEFT}" y="18" font-weight="bold">{escape(title)}</text>']
    for bits in range(int(_BITS[0]), int(_BITS[1]) + 1):
        parts.append(f'<line x1="{_x(bits)}" x2="{_x(bits)}" y1="30" y2="{_HEIGHT - _BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{_x(bits) - 4}" y="{_HEIGHT - _BOTTOM + 16}">{bits}</text>')
    for decade in range(int(_DECADES[0]), int(_DECADES[1]) + 1):
        height = _y(10**decade)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 20}" y1="{height}" y2="{height}" stroke="#ddd"/>')
        parts.append(f'<text x="12" y="{height + 4}">1e{decade}</text>')
    bound = " ".join(f"{_x(r / 10):.1f},{_y(2 ** (-r / 5)):.1f}" for r in range(10, 83))
    parts.append(f'<polyline points="{bound}" fill="none" stroke="#c33"/>')
    parts.append(f'<text x="{_x(7.2)}" y="{_y(2**-14.4) - 8}" fill="#c33">Gaussian bound</text>')
    for name, bits, error in points:
        fill = "#fff" if name.isupper() or "_" in name.split(":")[0] else "#246"
        parts.append(f'<circle cx="{_x(bits):.1f}" cy="{_y(error):.1f}" r="4" fill="{fill}" stroke="#246"/>')
        parts.append(f'<text x="{_x(bits) + 6:.1f}" y="{_y(error) - 4:.1f}" font-size="10">{escape(name)}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 14}">bits a weight</text></g>')
    return parts


def write_plot(path: Path, tables: Mapping[str, Sequence[tuple[str, float, float]]]) -> None:
    """Write one chart for each table of (name, bits a weight, relative squared error)."""
    panels = [_panel(title, points, number * _HEIGHT) for number, (title, points) in enumerate(tables.items())]
    body = "\n".join(part for panel in panels for part in panel)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT * len(panels)}"'
        f' font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )
