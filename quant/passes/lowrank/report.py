"""The page of an analysis: one HTML file with its plots drawn in SVG, nothing loaded from elsewhere.

It draws what `analysis` has found.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from edgepack.quant.passes.lowrank.plots import matrices_by_kind, rank_map, variance_panels

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edgepack.quant.passes.lowrank.analysis import ModelAnalysis
    from edgepack.quant.passes.lowrank.spectrum import Spectrum

_WIDTH, _HEIGHT, _MARGIN = 560, 300, 44
_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a")
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1f2328}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.2rem .6rem;text-align:right}
.panels{display:flex;flex-wrap:wrap}figcaption{overflow-wrap:anywhere;max-width:15rem}
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
    by_kind = matrices_by_kind(analysis)
    plots = f"<h3>Effective rank over full rank, of every matrix</h3>{rank_map(by_kind)}"
    plots += f"<h3>Cumulative variance, centred: a panel a kind, a curve a block</h3>{variance_panels(by_kind)}"
    return f"<h2>Weights</h2>{_overall(analysis)}{plots}<h3>Figures</h3>{_table(columns, rows)}"


def _overall(analysis: ModelAnalysis) -> str:
    summary = analysis.summary
    if summary is None:
        return "<p>No matrix inside the blocks.</p>"
    told = (
        f"Degrees of freedom of {summary.matrices} matrices: mean {summary.mean_df:.1f}, "
        f"median {summary.median_df:.1f} ({summary.mean_share:.0%} and {summary.median_share:.0%} of full rank). "
        f"Recommended: {summary.meaning}."
    )
    rows = [
        [f"{size.k}{' (recommended)' if size.k == summary.recommended_k else ''}", f"{size.bytes / 1e6:.2f} MB",
         f"{size.ratio:.0%}", f"{size.kept:.1%}"]
        for size in summary.sizes
    ]  # fmt: skip
    return f"<p>{escape(told)}</p>{_table(['k', 'factors, F16', 'of the matrices', 'variance kept'], rows)}"


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
    """Share of the variance in the first k directions; k relative to all. The legend stands below the axis."""
    lines = []
    for number, (name, spectrum) in enumerate(spectra.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = " ".join(f"{_x(k / spectrum.dimensions):.1f},{_y(share):.1f}" for k, share in spectrum.curve)
        lines.append(f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='1.5'/>")
        y = _HEIGHT + 16 * number
        lines.append(f"<line x1='{_MARGIN}' x2='{_MARGIN + 24}' y1='{y - 4}' y2='{y - 4}' stroke='{colour}'/>")
        lines.append(f"<text x='{_MARGIN + 30}' y='{y}'>{escape(name)}</text>")
    for share in (0.0, 0.5, 0.9, 1.0):
        lines.append(f"<line x1='{_x(0)}' x2='{_x(1)}' y1='{_y(share)}' y2='{_y(share)}' stroke='#d0d7de'/>")
        lines.append(f"<text x='4' y='{_y(share) + 4}'>{share:.0%}</text>")
    lines += [
        f"<text x='{_x(share)}' y='{_HEIGHT - 24}' text-anchor='middle'>{share:.0%} of k</text>"
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    return _svg(lines, _HEIGHT + 16 * len(spectra))


def _svg(lines: Iterable[str], height: int) -> str:
    return f"<svg viewBox='0 0 {_WIDTH} {height}' width='{_WIDTH}' height='{height}' role='img'>{''.join(lines)}</svg>"


def _x(share: float) -> float:
    return _MARGIN + share * (_WIDTH - 2 * _MARGIN)


def _y(share: float) -> float:
    return _HEIGHT - _MARGIN - share * (_HEIGHT - 2 * _MARGIN)
