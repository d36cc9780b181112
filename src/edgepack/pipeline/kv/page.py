"""A study of caches as one self-contained HTML page in the style of the fidelity report; it measures nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.edge.fidelity.report.charts import Point, scatter
from edgepack.edge.fidelity.report.page import filled
from edgepack.edge.kv.sizes import BASELINE, rotated, row_bytes
from edgepack.pipeline.kv.terms import KINDS, SHARES
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from edgepack.edge.kv.table import CacheCost
    from edgepack.pipeline.kv.results import KvResult
    from edgepack.quant.calibration.attention_spectra import LayerSpectra, View

_TEMPLATE = Path(__file__).with_name("kv_page.html")
_VIEWS: dict[View, str] = {
    "raw": "raw",
    "centred": "centred",
    "standardised": "standardised",
    "raw_first_dropped": "raw, first token dropped",
}
_TITLES = {"q_before": "Q before rotation", "q": "Q", "k_before": "K before rotation", "k": "K", "v": "V"}


def render(result: KvResult) -> str:
    """The page; it needs no network and no other file."""
    table = result.table
    chosen = table.smallest(result.shape)
    contexts = result.at_contexts()
    values = {
        "name": result.model.name,
        "table": table,
        "chosen": None if chosen is None else chosen.name,
        "rows": [_row(result, cost) for cost in table.costs],
        "left_out": list(table.left_out.items()),
        "chart": scatter(_points(result), "KL divergence from the f16 cache against bytes a token"),
        "context_names": list(contexts[0]["bytes"]),
        "contexts": [
            {"ctx": f"{row['ctx']:,}", "sizes": [format_size(size) for size in row["bytes"].values()]}
            for row in contexts
        ],
        "spectra": None if result.spectra is None else [_layer(layer) for layer in result.spectra.layers],
        "spectra_problem": result.spectra_problem,
        "read": 0 if result.spectra is None else result.spectra.tokens,
        "kinds": [_TITLES[kind] for kind in KINDS],
        "views": list(_VIEWS.values()),
        "shares": result.shares(),
        "costs": () if result.spectra is None else result.spectra.costs,
        "digest": result.digest,
    }
    return filled(_TEMPLATE, values)


def _points(result: KvResult) -> list[Point]:
    """Caches by bytes a token and KL; those that no smaller one beats are joined."""
    costs = [cost for cost in result.table.costs if cost.name != BASELINE]
    found = [(float(row_bytes(result.shape, cost.name)), cost.kl, cost.name) for cost in costs]
    if result.spectra is not None:
        found += [(float(one.bytes_per_token), one.kl, f"k = {one.dimensions}") for one in result.spectra.costs]
    return [
        Point(x, y, label, not any(ox <= x and oy <= y and (ox, oy) != (x, y) for ox, oy, _label in found))
        for x, y, label in found
    ] or [Point(float(row_bytes(result.shape, BASELINE)), 1e-6, BASELINE, marked=True)]


def _row(result: KvResult, cost: CacheCost) -> dict[str, Any]:
    turned = "".join(side for side, yes in zip("KV", rotated(result.shape, cost.name), strict=True) if yes)
    return {
        "name": cost.name,
        "bytes": f"{row_bytes(result.shape, cost.name):,}",
        "kl": f"{cost.kl:.5f}",
        "kl_high": "unknown" if cost.kl_high == float("inf") else f"{cost.kl_high:.5f}",
        "agreement": f"{100 * cost.agreement:.2f} %",
        "interval": " … ".join(f"{100 * end:.2f}" for end in cost.agreement_interval) + " %",
        "ratio": f"{cost.perplexity_ratio:.4f}",
        "rotated": turned or "–",
        "original": "" if cost.original_kl is None else f"{cost.original_kl:.5f}",
        "original_agreement": "" if cost.original_agreement is None else f"{100 * cost.original_agreement:.2f} %",
    }


def _layer(layer: LayerSpectra) -> dict[str, Any]:
    cells = []
    for kind in KINDS:
        spectra = layer.kinds.get(kind)
        for view in _VIEWS:
            if spectra is None:
                cells.append("–")
                continue
            joint = spectra.joint[view]
            cells.append(f"{joint.effective_rank:.0f}: {'/'.join(str(joint.dimensions(share)) for share in SHARES)}")
    first = layer.kinds["k"]
    return {"number": layer.layer, "width": first.width, "heads": len(first.heads), "cells": cells}
