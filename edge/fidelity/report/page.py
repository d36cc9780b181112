"""A run as one self-contained HTML page: verdict, figures, charts, worst tokens, weights.

It measures nothing and reads no model; charts are drawn by `report_charts`, the page is `report_page.html`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.edge.fidelity.outcome import greedy_line, percent
from edgepack.edge.fidelity.report.charts import Point, bars, line, scatter
from edgepack.edge.fidelity.run import pareto_front
from edgepack.edge.fidelity.validate import perplexity_ratio
from edgepack.quantities import format_size
from edgepack.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.edge.fidelity.gates import Gates
    from edgepack.edge.fidelity.run import Candidate, FidelityRun
    from edgepack.edge.fidelity.statistics import AgreementStatistics
    from edgepack.edge.fidelity.validate import DivergentToken, Validation

_TEMPLATE = Path(__file__).with_name("report_page.html")
_STYLE = Path(__file__).with_name("report_style.css")
_SHOWN_TOKENS = 20
_POSITION_BINS = 24
_SHOWN_BEFORE = 12  # tokens of context


def filled(template: Path, values: Mapping[str, Any]) -> str:
    """A page of the house's style: a template with `values`, beside `style` and `version`; it needs no network."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template.read_text(encoding="utf-8"))
    return page.render(**values, style=_STYLE.read_text(encoding="utf-8"), version=__version__)


def render(run: FidelityRun, gates: Gates) -> str:
    """The page; it needs no network and no other file."""
    front = pareto_front([c.bytes for c in run.candidates], [_kl(c) for c in run.candidates])
    candidates = [
        _candidate(candidate, gates, on_front=marked) for candidate, marked in zip(run.candidates, front, strict=True)
    ]
    values = {
        "run": run,
        "candidates": candidates,
        "rows": [
            *[_row(c.path.name, c.validation, c.bytes, mark) for c, mark in zip(run.candidates, front, strict=True)],
            *[_row(f"noise: {floor.candidate}", floor, None, on_front=False) for floor in run.floor],
        ],
        "pareto": _pareto(run, front) if len(run.candidates) > 1 else None,
        "passed": all(candidate["passed"] for candidate in candidates),
    }
    return filled(_TEMPLATE, values)


def _candidate(candidate: Candidate, gates: Gates, *, on_front: bool) -> dict[str, Any]:
    validation = candidate.validation
    results = candidate.gate_results(gates)
    return {
        "name": candidate.path.name,
        "size": format_size(candidate.bytes),
        "on_front": on_front,
        "gates": results,
        "passed": all(result.passed for result in results),
        "histogram": _histogram(validation.statistics),
        "along": _along(validation.statistics),
        "worst": [_token(validation, token) for token in validation.worst[:_SHOWN_TOKENS]],
        "first": _token(validation, validation.first_clear) if validation.first_clear else None,
        "greedy": greedy_line(candidate.greedy),
        "suspicions": candidate.findings.suspicions if candidate.findings else [],
        "weights": _weights(candidate),
    }


def _row(name: str, validation: Validation, size: int | None, on_front: bool) -> dict[str, Any]:
    statistics = validation.statistics
    low, high = statistics.agreement.share_interval()
    kl_low, kl_high = statistics.divergence.interval()
    ratio, (ratio_low, ratio_high) = perplexity_ratio(statistics)
    return {
        "name": name,
        "on_front": on_front,
        "size": "" if size is None else format_size(size),
        "tokens": f"{statistics.tokens:,}",
        "agreement": percent(statistics.agreement.mean),
        "agreement_interval": f"{percent(low)} … {percent(high)}",
        "top5": percent(statistics.top5.mean),
        "kl": f"{statistics.divergence.mean:.3g}",
        "kl_interval": f"{max(0.0, kl_low):.3g} … {kl_high:.3g}",
        "kl999": f"{statistics.histogram.quantile(0.999):.3g}",
        "kl_max": f"{statistics.histogram.maximum:.3g}",
        "ratio": f"{ratio:.4f}",
        "ratio_interval": f"{ratio_low:.4f} … {ratio_high:.4f}",
        "dp": f"{100 * math.sqrt(statistics.squared_change.mean):.2f} %",
        "flips": f"{statistics.lost} / {statistics.gained}",
    }


def _histogram(statistics: AgreementStatistics) -> str:
    edges = 10.0 ** np.arange(-7, 2.01, 0.25)
    counts = statistics.histogram.coarse(edges)
    labels = ["< 1e-7", *[f"{edge:.1g}" for edge in edges]]
    filled = np.flatnonzero(counts)
    first, last = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, 1)
    return bars(counts[first:last].tolist(), labels[first:last], "tokens by divergence", log=True)


def _along(statistics: AgreementStatistics) -> str:
    agreeing, tokens = statistics.along_position
    places = np.flatnonzero(tokens)
    points = [
        (float(part.mean()), float(agreeing[part].sum() / tokens[part].sum()))
        for part in np.array_split(places, min(_POSITION_BINS, len(places)))
        if len(part)
    ]
    return line(points, "agreement along the position in a chunk")


def _weights(candidate: Candidate) -> str | None:
    if candidate.findings is None or not candidate.findings.weights:
        return None
    weights = [weight for weight in candidate.findings.weights if weight.relative_error > 0]
    values = [weight.relative_error if math.isfinite(weight.relative_error) else 10.0 for weight in weights]
    if not values:
        return None
    labels = [f"{weight.name} {weight.type}" for weight in weights]
    return bars(values, labels, "relative error of each tensor", _block_ticks([weight.name for weight in weights]))


def _block_ticks(names: list[str]) -> dict[int, str]:
    """The number of each block under its first tensor, of many blocks only some."""
    firsts: dict[str, int] = {}
    for index, name in enumerate(names):
        if name.startswith("blk."):
            firsts.setdefault(name.split(".")[1], index)
    every = max(1, len(firsts) // 16)
    return {index: block for block, index in firsts.items() if int(block) % every == 0}


def _token(validation: Validation, token: DivergentToken) -> dict[str, Any]:
    return {
        "divergence": f"{token.divergence:.3g}",
        "position": f"{token.position:,}",
        "in_chunk": token.in_chunk,
        "context": validation.spell(token.context[-_SHOWN_BEFORE:]),
        "target": validation.spell([token.target]),
        "reference": validation.spell([token.reference]),
        "candidate": validation.spell([token.candidate]),
        "probabilities": f"{100 * token.reference_p:.2g} % → {100 * token.candidate_p:.2g} %",
        "margin": f"{token.margin:.2f}",
    }


def _pareto(run: FidelityRun, front: list[bool]) -> str:
    points = [
        Point(candidate.bytes / 1e6, max(_kl(candidate), 1e-9), candidate.path.stem, marked)
        for candidate, marked in zip(run.candidates, front, strict=True)
    ]
    return scatter(points, "size in MB against mean KL divergence")


def _kl(candidate: Candidate) -> float:
    return candidate.validation.statistics.divergence.mean
