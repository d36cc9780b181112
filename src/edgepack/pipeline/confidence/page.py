"""A calibration as one self-contained HTML page in the style of the fidelity report; it measures nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.edge.fidelity.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    grid,
    svg,
    text,
)
from edgepack.edge.fidelity.report.page import filled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.pipeline.confidence.metrics import Bin
    from edgepack.pipeline.confidence.results import CalibrationResult, FormResult, RiskCurve, Scores

_TEMPLATE = Path(__file__).with_name("confidence_page.html")
_TALL = HEIGHT + 60
_GOOD = 0.05  # a calibration error that this project takes for good
TITLES = {
    "text": "Texts continued",
    "chat": "Questions through the chat template",
    "choice": "The likeliest of given choices",
}


def render(result: CalibrationResult) -> str:
    """The page; it needs no network and no other file."""
    values = {
        "name": result.file.name,
        "questions": f"{result.questions:,}",
        "origin": result.origin,
        "wish": str(result.wish),
        "digest": result.digest,
        "forms": [_form(TITLES[form], one) for form, one in result.forms.items()],
        "left_out": list(result.left_out.items()),
    }
    return filled(_TEMPLATE, values)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _form(title: str, result: FormResult) -> dict[str, Any]:
    raw, kept, routed = result.methods["raw"], result.methods[result.method], result.routed
    return {
        "title": title,
        "good": kept.ece <= max(_GOOD, kept.ece_by_chance),
        "before": f"{raw.ece:.3f}",
        "after": f"{kept.ece:.3f}",
        "accuracy": _percent(result.accuracy),
        "method": result.method,
        "fitted_on": f"{result.fitted_on:,}",
        "judged_on": f"{result.judged_on:,}",
        "threshold": f"{routed.threshold:.3f}",
        "threshold_interval": _span(routed.threshold_interval),
        "given": _percent(routed.given),
        "given_interval": _percent_span(routed.given_interval),
        "given_accuracy": _percent(routed.accuracy),
        "given_accuracy_interval": _percent_span(routed.accuracy_interval),
        "raw_accuracy": _percent(routed.raw_accuracy),
        "rows": [_row(name, scores, kept=name == result.method) for name, scores in result.methods.items()],
        "reliability_before": reliability_chart(raw.bins, "reliability before calibration"),
        "reliability_after": reliability_chart(kept.bins, "reliability after calibration"),
        "risk": risk_chart(result.before, result.after),
    }


def _span(values: tuple[float, float]) -> str:
    return f"{values[0]:.3f} … {values[1]:.3f}"


def _percent_span(values: tuple[float, float]) -> str:
    return f"{100 * values[0]:.1f} … {100 * values[1]:.1f} %"


def _row(name: str, scores: Scores, *, kept: bool) -> dict[str, Any]:
    return {
        "name": name,
        "kept": kept,
        "ece": f"{scores.ece:.4f}",
        "ece_interval": _span(scores.ece_interval),
        "chance": f"{scores.ece_by_chance:.4f}",
        "brier": f"{scores.brier:.4f}",
        "log_loss": f"{scores.log_loss:.4f}",
        "auroc": f"{scores.auroc:.4f}",
        "risk": f"{scores.area_under_risk:.4f}",
    }


def reliability_chart(bins: Sequence[Bin], title: str) -> str:
    """Accuracy by confidence as bars, with the line on which both agree."""
    x, y = Axis(0, 1, LEFT, WIDTH - RIGHT), Axis(0, 1, _TALL - BOTTOM, TOP + 8)  # room for a number above a full bar
    parts = [grid(y, percent=True)]
    for one in bins:
        if not one.count:
            continue
        left, width, top = x.at(one.low), x.at(one.high) - x.at(one.low), y.at(one.accuracy)
        tip = f"<title>{one.count} answers, confidence {one.confidence:.3f}, right {one.accuracy:.3f}</title>"
        height = max(_TALL - BOTTOM - top, 0.5)
        parts.append(
            f'<rect class="bar" x="{left + 0.5:.1f}" y="{top:.1f}" width="{width - 1:.1f}" height="{height:.1f}">'
            f"{tip}</rect>"
        )
        parts.append(text(left + width / 2, top - 4, f"{one.count:,}", "middle"))
    parts.append(f'<polyline class="exact" points="{x.at(0):.1f},{y.at(0):.1f} {x.at(1):.1f},{y.at(1):.1f}"/>')
    parts += [text(x.at(tick), _TALL - BOTTOM + 16, f"{tick:g}", "middle") for tick in x.ticks()]
    return svg(parts, title, _TALL)


def risk_chart(before: RiskCurve, after: RiskCurve) -> str:
    """Share of wrong answers against the share given."""
    top = max(*before.risk, *after.risk, 1e-3)
    x, y = Axis(0, 1, LEFT, WIDTH - 2 * RIGHT), Axis(0, top, HEIGHT - BOTTOM, TOP)
    parts = [grid(y, percent=True)]
    for curve, kind in ((before, "line before"), (after, "line")):
        points = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in zip(curve.coverage, curve.risk, strict=True))
        parts.append(f'<polyline class="{kind}" points="{points}"/>')
    parts += [text(x.at(tick), HEIGHT - BOTTOM + 16, f"{100 * tick:g} %", "middle") for tick in x.ticks()]
    return svg(parts, "risk against coverage")
