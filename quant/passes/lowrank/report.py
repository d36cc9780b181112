"""The page of an analysis: one HTML file with its plots drawn in SVG, nothing loaded from elsewhere.

It draws what `analysis` has found.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edgepack.quant.passes.lowrank.analysis import ModelAnalysis
    from edgepack.quant.passes.lowrank.spectrum import Spectrum

_WIDTH, _HEIGHT, _MARGIN = 560, 300, 44
_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a")
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1f2328}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.2rem .6rem;text-align:right}
td:first-child,th:first-child{text-align:left}tr:nth-child(even){background:#f6f8fa}figure{display:inline-block;margin:1rem}
text{font:11px system-ui,sans-serif;fill:#57606a}
"""


def render_analysis(model: str, text: str, analysis: ModelAnalysis) -> str:
    """The whole page.

    Args:
        model: its name.
        text: what the activations were measured on; empty where they were not.
        analysis: what was found.
    """
    parts = [f"<h1>Spectra of {escape(model)}</h1>", _weights_section(analysis)]
    if analysis.activations:
        parts.append(_activations_section(analysis, text))
    head = f"<meta charset='utf-8'><title>Spectra of {escape(model)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _weights_section(analysis: ModelAnalysis) -> str:
    rows = [
        [
            layer.name, f"{layer.shape[0]} × {layer.shape[1]}", *_summary(layer.spectra["centred"]),
            f"{layer.as_json()['compression']['95%']:.2f}",
            "" if layer.sensitivity is None else f"{layer.sensitivity:.5f}",
        ]
        for layer in analysis.weights
    ]  # fmt: skip
    columns = ["weight", "shape", *_SUMMARY, "compression at 95 %", "4-bit output error"]
    bars = [(layer.name, layer.spectra["centred"].effective_rank / layer.spectra["centred"].dimensions)
            for layer in analysis.weights]  # fmt: skip
    curves = {layer.name: layer.spectra["centred"] for layer in analysis.weights[:6]}
    plots = _figure("Cumulative variance, first block's weights, centred", _curves(curves))
    plots += _figure("Effective rank over full rank, by layer", _bars(bars))
    return f"<h2>Weights</h2>{plots}{_table(columns, rows)}"


def _activations_section(analysis: ModelAnalysis, text: str) -> str:
    parts = [f"<h2>Activations after each block</h2><p>Measured on {escape(text)}.</p>"]
    parts.append(
        "<p>A mean and a few massive dimensions, mostly at the first token, make the raw spectrum look tiny. The "
        "standardised one is what compression meets.</p>"
    )
    last = analysis.activations[-1]
    parts.append(_figure(f"Cumulative variance after block {last.block}", _curves(last.spectra)))
    rows = [
        [f"block {block.block}, {name}", *_summary(spectrum)]
        for block in analysis.activations
        for name, spectrum in block.spectra.items()
    ]
    parts.append(_table(["activations", *_SUMMARY], rows))
    return "".join(parts)


_SUMMARY = ("effective rank", "of", "k for 90 %", "95 %", "99 %", "variance at k = 9", "at k = 22")


def _summary(spectrum: Spectrum) -> list[str]:
    shares = [f"{share:.1%}" for share in spectrum.variance_at.values()]
    return [f"{spectrum.effective_rank:.1f}", str(spectrum.dimensions), *map(str, spectrum.k_for.values()), *shares]


def _table(columns: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _figure(title: str, drawing: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}</figure>"


def _curves(spectra: Mapping[str, Spectrum]) -> str:
    """Share of the variance in the first k directions; k relative to all."""
    lines = []
    for number, (name, spectrum) in enumerate(spectra.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = " ".join(f"{_x(k / spectrum.dimensions):.1f},{_y(share):.1f}" for k, share in spectrum.curve)
        lines.append(f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='1.5'/>")
        y = _HEIGHT - _MARGIN - 14 * (len(spectra) - number)
        lines.append(
            f"<text x='{_WIDTH - _MARGIN - 4}' y='{y}' text-anchor='end' style='fill:{colour}'>{escape(name)}</text>"
        )
    for share in (0.0, 0.5, 0.9, 1.0):
        lines.append(f"<line x1='{_x(0)}' x2='{_x(1)}' y1='{_y(share)}' y2='{_y(share)}' stroke='#d0d7de'/>")
        lines.append(f"<text x='4' y='{_y(share) + 4}'>{share:.0%}</text>")
        lines.append(f"<text x='{_x(share)}' y='{_HEIGHT - 14}' text-anchor='middle'>{share:.0%} of k</text>")
    return _svg(lines)


def _bars(values: Sequence[tuple[str, float]]) -> str:
    """One bar a layer, 0 to 1; the name is told where a pointer rests."""
    width = (_WIDTH - 2 * _MARGIN) / max(len(values), 1)
    lines = []
    for number, (name, value) in enumerate(values):
        x, y = _MARGIN + number * width, _y(value)
        height = _HEIGHT - _MARGIN - y
        title = f"<title>{escape(name)}: {value:.2f}</title>"
        size = f"width='{width * 0.85:.1f}' height='{height:.1f}'"
        lines.append(f"<rect x='{x:.1f}' y='{y:.1f}' {size} fill='#1f6feb'>{title}</rect>")
    lines += [f"<text x='4' y='{_y(share) + 4}'>{share:.0%}</text>" for share in (0.0, 0.5, 1.0)]
    return _svg(lines)


def _svg(lines: Iterable[str]) -> str:
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' width='{_WIDTH}' height='{_HEIGHT}' role='img'>{''.join(lines)}</svg>"
    )


def _x(share: float) -> float:
    return _MARGIN + share * (_WIDTH - 2 * _MARGIN)


def _y(share: float) -> float:
    return _HEIGHT - _MARGIN - share * (_HEIGHT - 2 * _MARGIN)
