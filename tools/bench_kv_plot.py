"""Draws what every cache costs against its bytes a token, one chart a model, of the figures that are kept.

    python tools/bench_kv_plot.py docs/kv-cache.svg

It measures nothing: rows are those of docs/figures (`bench_kv`, `bench_attention`, `bench_latent_attention`,
`bench_folded_heads`), which judge all caches of a model on the same text. The SVG is written by hand: no plotting
library is needed.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log2, log10
from pathlib import Path
from typing import TYPE_CHECKING

from figure_file import FOLDER, read_figure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 900, 520, 70, 50, 30, 70
_KINDS = {  # kind → (colour, what it is)
    "type": ("#246", "llama.cpp's types"),
    "not turned": ("#c33", "the same without its Hadamard rotation"),
    "components": ("#9a9", "principal components of K before rotation and of V"),
    "maps": ("#284", "EigenAttention: components weighted by scores and outputs"),
    "maps, trained": ("#4c6", "the same after training"),
    "latent": ("#84a", "attention through a latent (deepseek2)"),
    "latent, trained": ("#c6e", "the same after training"),
    "narrow heads": ("#b60", "narrow heads folded into the weights"),
}
_LEAST = 1e-4  # nats below which a divergence is none: an axis of logarithms has no zero


@dataclass(frozen=True)
class Point:
    """One cache: its name (trained or not the same), bytes a token, KL in nats from the whole cache, and its kind."""

    name: str
    size: float
    kl: float
    kind: str


def number(cell: str) -> float | None:
    """What stands in a cell; None where nothing does."""
    text = cell.replace(",", "")
    try:
        return float(text)
    except ValueError:
        return None


def _rows(figure: str) -> Iterator[tuple[str, ...]]:
    """None of a figure that nobody has measured yet."""
    path = FOLDER / f"{figure}.json"
    if path.exists():
        yield from read_figure(path).rows


def _caches(row: tuple[str, ...]) -> Iterator[tuple[str, str, str, str]]:
    _model, name, size, kl, _most, _same, plain, *_ = row
    yield name, size, kl, "type"
    yield name, size, plain, "not turned"


def _dimensions(row: tuple[str, ...]) -> Iterator[tuple[str, str, str, str]]:
    _model, rank, size, _smaller, _keys, _values, kl, *_ = row
    yield f"k = {rank.split()[0]}", size, kl, "components"


def _maps(row: tuple[str, ...]) -> Iterator[tuple[str, str, str, str]]:
    _model, rank, size, _smaller, _raw, _centred, before, after, *_ = row
    yield f"k = {rank.split()[0]}", size, before, "maps"
    yield f"k = {rank.split()[0]}", size, after, "maps, trained"


def _latent(row: tuple[str, ...]) -> Iterator[tuple[str, str, str, str]]:
    _model, shape, size, _of, before, _same, after, *_ = row
    if "as it was" not in shape:
        yield shape, size, before, "latent"
        yield shape, size, after, "latent, trained"


def _narrow(row: tuple[str, ...]) -> Iterator[tuple[str, str, str, str]]:
    _model, fold, size, _smaller, kl, *_ = row
    yield fold.removeprefix("as it was, cache "), size, kl, "type" if "as it was" in fold else "narrow heads"


_READ = {
    "kv-caches": _caches, "kv-dimensions": _dimensions, "attention-books": _maps, "attention-135m": _maps,
    "latent-books": _latent, "latent-135m": _latent, "folded-heads": _narrow,
}  # fmt: skip


def all_points() -> dict[str, list[Point]]:
    """Model → its caches, of every figure; those that lose nothing measurable are left out."""
    found: dict[str, list[Point]] = defaultdict(list)
    for figure, read in _READ.items():
        for row in _rows(figure):
            for name, size, kl, kind in read(row):
                held, lost = number(size), number(kl)
                if held and lost and lost > _LEAST:
                    found[row[0]].append(Point(name, held, lost, kind))
    return dict(found)


@dataclass(frozen=True)
class _Axes:
    """Logarithmic in both directions: whole powers of two across, whole decades up."""

    low: int
    high: int
    bottom: int
    ceiling: int

    @classmethod
    def around(cls, points: Sequence[Point]) -> _Axes:
        sizes, losses = [log2(each.size) for each in points], [log10(each.kl) for each in points]
        return cls(floor(min(sizes)), ceil(max(sizes)), floor(min(losses)), ceil(max(losses)))

    def across(self, size: float) -> float:
        return _LEFT + (log2(size) - self.low) / max(self.high - self.low, 1) * (_WIDTH - _LEFT - _RIGHT)

    def down(self, kl: float) -> float:
        share = (self.ceiling - log10(kl)) / max(self.ceiling - self.bottom, 1)
        return _TOP + share * (_HEIGHT - _BOTTOM - _TOP)

    def lines(self) -> Iterator[str]:
        for power in range(self.low, self.high + 1):
            x = self.across(2.0**power)
            yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" stroke="#ddd"/>'
            yield f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{2**power:,}</text>'
        for decade in range(self.bottom, self.ceiling + 1):
            y = self.down(10.0**decade)
            yield f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**decade:g}</text>'


def _panel(title: str, points: Sequence[Point], top: int) -> Iterator[str]:
    """One chart: a labelled dot for each cache, a colour for each kind, a line from before training to after it."""
    axes = _Axes.around(points)
    yield f'<g transform="translate(0 {top})"><text x="{_LEFT}" y="18" font-weight="bold">{escape(title)}</text>'
    yield from axes.lines()
    before = {(each.kind, each.name): each for each in points}
    for each in points:
        x, y, colour = axes.across(each.size), axes.down(each.kl), _KINDS[each.kind][0]
        first = before.get((each.kind.removesuffix(", trained"), each.name))
        if first is not None and first is not each:
            yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{axes.down(first.kl):.1f}" y2="{y:.1f}" stroke="{colour}"/>'
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
        if each.kind in ("type", "maps", "latent", "narrow heads"):
            yield (f'<text x="{x + 6:.1f}" y="{y - 4:.1f}" font-size="10" fill="{colour}">{escape(each.name)}</text>')
    yield from _legend({each.kind for each in points})
    yield f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 12}" text-anchor="middle">bytes a token, all layers</text></g>'


def _legend(kinds: set[str]) -> Iterator[str]:
    for row, kind in enumerate(kind for kind in reversed(_KINDS) if kind in kinds):
        (colour, told), y = _KINDS[kind], _HEIGHT - _BOTTOM - 14 - 16 * row
        yield f'<circle cx="{_LEFT + 12}" cy="{y - 4}" r="4" fill="{colour}"/>'
        yield f'<text x="{_LEFT + 22}" y="{y}" fill="{colour}">{escape(told)}</text>'


def drawn(models: Mapping[str, Sequence[Point]]) -> str:
    """The SVG, a chart a model."""
    body = "\n".join(
        part
        for place, (name, points) in enumerate(models.items())
        for part in _panel(f"{name}: KL to the whole cache, nats a token", points, place * _HEIGHT)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT * len(models)}"'
        f' font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(drawn(all_points()), encoding="utf-8")
