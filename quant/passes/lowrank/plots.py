"""Pictures of every matrix at once: a map of effective ranks and a panel of curves for each kind of matrix.

A row or a panel is a kind (`self_attn.q_proj`), a column or a curve a block: nothing is left out, and every label has
room of its own. The page around them is `report`'s.
"""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgepack.quant.passes.lowrank.analysis import ModelAnalysis
    from edgepack.quant.passes.lowrank.spectrum import Spectrum

_BLOCK = re.compile(r"^.*?\.(\d+)\.(.+?)(?:\.weight)?$")
_CELL, _ROW, _LABEL = 32, 22, 8  # pixels; a character of a label takes about seven
_PANEL, _PLOT, _PAD = 230, 110, 30
_TOP = 18


def matrices_by_kind(analysis: ModelAnalysis) -> dict[str, dict[int, Spectrum]]:
    """Kind → block → centred spectrum; of experts the number stays in the kind."""
    found: dict[str, dict[int, Spectrum]] = {}
    for layer in analysis.weights:
        match = _BLOCK.match(layer.name)
        block, kind = (int(match[1]), match[2]) if match else (0, layer.name)
        found.setdefault(kind, {})[block] = layer.spectra["centred"]
    return found


def rank_map(kinds: Mapping[str, Mapping[int, Spectrum]]) -> str:
    """A cell for each matrix: effective rank over full rank in per cent, darker where more is used."""
    blocks = sorted({block for each in kinds.values() for block in each})
    left = _LABEL * max((len(kind) for kind in kinds), default=0) + 10
    width, height = left + _CELL * len(blocks) + 10, _TOP + _ROW * len(kinds) + 6
    parts = [
        f"<text x='{left + _CELL * (place + 0.5):.0f}' y='{_TOP - 6}' text-anchor='middle'>{block}</text>"
        for place, block in enumerate(blocks)
    ]
    for row, (kind, each) in enumerate(kinds.items()):
        y = _TOP + _ROW * row
        parts.append(f"<text x='{left - 8}' y='{y + 15}' text-anchor='end'>{escape(kind)}</text>")
        parts += [_cell(left + _CELL * blocks.index(block), y, kind, block, each[block]) for block in sorted(each)]
    return _scrolled(parts, width, height)


def _cell(x: int, y: int, kind: str, block: int, spectrum: Spectrum) -> str:
    share = spectrum.effective_rank / max(1, spectrum.dimensions)
    ink = "#fff" if share > 0.6 else "#1f2328"
    told = f"{kind}, block {block}: effective rank {spectrum.effective_rank:.1f} of {spectrum.dimensions}"
    return (
        f"<rect x='{x}' y='{y}' width='{_CELL - 2}' height='{_ROW - 2}' fill='#1f6feb' fill-opacity='{share:.2f}'"
        f" stroke='#d0d7de'><title>{escape(told)}</title></rect>"
        f"<text x='{x + _CELL // 2 - 1}' y='{y + 14}' text-anchor='middle' style='fill:{ink}'>{100 * share:.0f}</text>"
    )


def variance_panels(kinds: Mapping[str, Mapping[int, Spectrum]]) -> str:
    """Share of the variance in the first k directions, k relative to full rank; early blocks light, late ones dark."""
    return "<div class='panels'>" + "".join(_panel(kind, each) for kind, each in kinds.items()) + "</div>"


def _panel(kind: str, blocks: Mapping[int, Spectrum]) -> str:
    lines = list(_axes())
    last = max(blocks)
    for block, spectrum in sorted(blocks.items()):
        points = " ".join(f"{_x(k / spectrum.dimensions):.1f},{_y(share):.1f}" for k, share in spectrum.curve)
        opacity = 0.25 + 0.75 * (block / last if last else 1)
        lines.append(
            f"<polyline points='{points}' fill='none' stroke='#1f6feb' stroke-opacity='{opacity:.2f}'>"
            f"<title>block {block}</title></polyline>"
        )
    height = _PLOT + 2 * _PAD
    svg = f"<svg viewBox='0 0 {_PANEL} {height}' width='{_PANEL}' height='{height}' role='img'>{''.join(lines)}</svg>"
    several = f"blocks {min(blocks)} to {last}" if len(blocks) > 1 else f"block {last}"
    return f"<figure><figcaption>{escape(kind)}<br><small>{several}</small></figcaption>{svg}</figure>"


def _axes() -> Iterator[str]:
    for share in (0.0, 0.5, 1.0):
        yield f"<line x1='{_x(0)}' x2='{_x(1)}' y1='{_y(share)}' y2='{_y(share)}' stroke='#d0d7de'/>"
        yield f"<text x='{_PAD}' y='{_y(share) + 4}' text-anchor='end'>{share:.0%}</text>"
        yield f"<text x='{_x(share)}' y='{_y(0) + 16}' text-anchor='middle'>{share:.0%}</text>"
    yield f"<text x='{_x(0.5)}' y='{_y(0) + 29}' text-anchor='middle'>k over full rank</text>"


def _scrolled(parts: list[str], width: int, height: int) -> str:
    svg = f"<svg viewBox='0 0 {width} {height}' width='{width}' height='{height}' role='img'>{''.join(parts)}</svg>"
    return f"<div style='overflow-x:auto'>{svg}</div>"


def _x(share: float) -> float:
    return _PAD + 6 + share * (_PANEL - 2 * _PAD - 6)


def _y(share: float) -> float:
    return _PAD + _PLOT - share * _PLOT - 20
