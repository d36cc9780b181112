"""Part `prune` of bench_learning: pruning in one shot beside masks that grow while the model learns from itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench_passes import Row
from learning_parts import Claim, PassRow, Plan

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bench_passes import Measured

DENSE = "dense → q8_0"
_BAR = 0.5  # of the rise of perplexity that is left: issue of the learning passes


def rows(plan: Plan) -> list[PassRow]:
    """Dense, then each sparsity in one shot and gradually."""
    every = max(1, plan.steps // 20)
    gradual = f"schedule=cubic,every={every},{plan.learning},rate=0.0003"
    seen = plan.steps * plan.batch
    found = [PassRow(Row(DENSE, "q8_0", (), False))]
    for level in plan.sparsities:
        name = f"prune:method=sparsegpt,sparsity={level}"
        found.append(PassRow(Row(_once(level), "q8_0", (name,), False), 0, zeros_of))
        found.append(PassRow(Row(_gradual(level), "q8_0", (f"{name},{gradual}",), False), seen, zeros_of))
    return found


def _once(level: float) -> str:
    return f"{level:.0%} SparseGPT → q8_0"


def _gradual(level: float) -> str:
    return f"{level:.0%} SparseGPT, gradual + recovery → q8_0"


def zeros_of(path: Path) -> str:
    """Share of exact zeros in the file's matrices inside blocks."""
    from edgepack.export.gguf_source import map_gguf

    zeros = weights = 0
    for name, rows in map_gguf(path, allow_requantize=True).tensors.items():
        if name.startswith("blk.") and len(rows.shape) == 2:
            values = rows.read(0, rows.shape[0])
            zeros, weights = zeros + int((values == 0).sum()), weights + values.size
    return f"zeros in the file {zeros / max(weights, 1):.4f}"


def claims(found: Mapping[str, Measured]) -> list[Claim]:
    """How much of one shot's rise of perplexity is left."""
    made = []
    for level in (0.6, 0.65, 0.7):
        once, gradual = found.get(_once(level)), found.get(_gradual(level))
        if DENSE in found and once is not None and gradual is not None:
            dense = found[DENSE].perplexity
            left = (gradual.perplexity - dense) / (once.perplexity - dense)
            bar = f"at most {_BAR}" if level == 0.65 else "printed"
            holds = left <= _BAR if level == 0.65 else None
            made.append(Claim(f"{level:.0%}: rise of perplexity, gradual / one shot", bar, f"{left:.3f}", holds))
    return made
