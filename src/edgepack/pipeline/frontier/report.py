"""A frontier as one page: tables and charts in one HTML file that needs no other; and as lines for a terminal.

It measures nothing; charts are `drawing`'s, the page is `frontier_page.html`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.edge.fidelity.outcome import percent
from edgepack.edge.fidelity.report.page import filled
from edgepack.edge.fit.devices import find_device
from edgepack.files.output import atomic_output
from edgepack.pipeline.frontier.drawing import MEASURES, budget_on, colours, panel, picture
from edgepack.pipeline.frontier.found import RESULT, Frontier
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from edgepack.pipeline.frontier.points import Point

PAGE, PICTURE = "frontier.html", "frontier.svg"
_TEMPLATE = Path(__file__).with_name("frontier_page.html")


def write_report(found: Frontier, folder: Path) -> None:
    """Write the page and the picture into a folder."""
    for name, content in ((PICTURE, picture(found)), (PAGE, page(found))):
        with atomic_output(folder / name) as stream:
            stream.write(content.encode())


def page(found: Frontier) -> str:
    """The page; it needs no network and no other file."""
    shipped, memory = found.front("shipped_bytes"), found.front("file_bytes")
    return filled(_TEMPLATE, {
        "found": found,
        "colours": colours(found),
        "texts": [{"name": name, "sha256": sha, "tokens": f"{tokens:,}", "ctx": ctx,
                "charts": [panel(found, measure, name) for measure in MEASURES]}
               for name, (sha, tokens, ctx) in found.texts.items()],
        "rows": [_row(found, point, shipped, memory) for point in found.measured],
        "failed": [point for point in found.points if point.failed],
        "devices": _devices(found),
        "verdicts": verdicts(found),
        "result": RESULT,
    })  # fmt: skip


def _row(found: Frontier, point: Point, shipped: frozenset[str], memory: frozenset[str]) -> dict[str, Any]:
    return {
        "family": point.family,
        "label": point.label,
        "file": f"{point.file_bytes:,}",
        "shipped": f"{point.shipped_bytes:,}",
        "coder": point.coder,
        "file_bits": f"{point.file_bits:.3f}",
        "shipped_bits": f"{point.shipped_bits:.3f}",
        "marks": f"{'●' if point.id in shipped else ''}{'◆' if point.id in memory else ''}",
        "seconds": f"{point.make_seconds:,.0f}",
        "texts": [_figures(point, name) for name in found.texts],
    }


def _figures(point: Point, name: str) -> dict[str, str]:
    figures = point.texts[name]
    (kl_low, kl_high), (low, high) = figures.kl_interval, figures.top1_interval
    ratio_low, ratio_high = figures.ratio_interval
    return {
        "kl": f"{figures.mean_kl:.3g}",
        "kl_interval": f"{max(0.0, kl_low):.3g} … {kl_high:.3g}",
        "top1": percent(figures.top1),
        "top1_interval": f"{percent(low)} … {percent(high)}",
        "ratio": f"{figures.perplexity_ratio:.4f}",
        "ratio_interval": f"{ratio_low:.4f} … {ratio_high:.4f}",
    }


def _devices(found: Frontier) -> list[dict[str, Any]]:
    """A row a device: its budget, and the most faithful file within it."""
    rows = []
    for device in dict.fromkeys(name for point in found.measured for name in point.devices):
        fits = [point.devices[device] for point in found.measured if device in point.devices]
        best = found.best_on(device)
        there = None if best is None else best.devices[device]
        speed = None if there is None else there.tokens_per_second
        rows.append({
            "name": find_device(device).name, "context": max(fit.context for fit in fits),
            "budget": format_size(budget_on(found, device)), "beside": format_size(max(f.beside_bytes for f in fits)),
            "count": f"{sum(fit.fits for fit in fits)} of {len(fits)}", "best": "none" if best is None else best.id,
            "speed": "" if speed is None else f"about {speed:,.0f}",
        })  # fmt: skip
    return rows


def verdicts(found: Frontier) -> list[str]:
    """What keeps the goal: the fewest shipped bytes and the least memory, ours beside llama.cpp's."""
    from edgepack.pipeline.frontier.catalogue import LLAMA_CPP

    theirs = [point for point in found.measured if point.family in LLAMA_CPP]
    lines = []
    for measure, told in (("shipped_bytes", "fewest shipped bytes"), ("file_bytes", "least memory")):
        ours, stock = found.smallest(measure), found.smallest(measure, theirs)
        lines.append(
            f"{told} with {percent(found.goal)} of first choices kept on every text: {_kept(found, ours, measure)}; "
            f"of llama.cpp's own: {_kept(found, stock, measure)}"
        )
    return lines


def _kept(found: Frontier, point: Point | None, measure: str) -> str:
    if point is None:
        return "none of these files"
    surely = "" if found.keeps(point, surely=True) else ", by the estimate; the interval's lower end is below"
    return f"{point.id}, {getattr(point, measure):,} bytes{surely}"


def lines(found: Frontier) -> list[str]:
    """The table and the verdicts for a terminal."""
    heading = [
        "",
        "MB",
        "ships MB",
        "bits",
        "ships",
        *(part for name in found.texts for part in (f"KL {name}", "top-1")),
    ]
    rows = [heading, *(_line(found, point) for point in found.measured)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heading))]
    shown = [_aligned(row, widths) for row in rows]
    failed = [f"{point.id}: not made: {point.failed}" for point in found.points if point.failed]
    devices = [f"{row['name']}: a file of at most {row['budget']} beside {row['context']} tokens of context; "
               f"{row['count']} fit, the most faithful is {row['best']}" for row in _devices(found)]  # fmt: skip
    return [*shown, *failed, "", *verdicts(found), "", *devices]


def _aligned(row: list[str], widths: list[int]) -> str:
    first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
    return "  ".join([first.strip().ljust(widths[0]), *rest])


def _line(found: Frontier, point: Point) -> list[str]:
    figures = [(f"{point.texts[name].mean_kl:.4g}", percent(point.texts[name].top1)) for name in found.texts]
    sizes = [f"{point.file_bytes / 1e6:.3f}", f"{point.shipped_bytes / 1e6:.3f}"]
    bits = [f"{point.file_bits:.2f}", f"{point.shipped_bits:.2f}"]
    return [point.id, *sizes, *bits, *(part for pair in figures for part in pair)]
