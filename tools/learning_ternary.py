"""Part `ternary` of bench_learning: rounding alone, training with and without its parts, a Q2_K file beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench_passes import Row
from learning_parts import Claim, PassRow, Plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench_passes import Measured

ROUNDED, TRAINED, NO_RAMP = "rounded → tq2_0", "trained → tq2_0", "trained, no λ ramp → tq2_0"
NORMS, NO_RELATIONS = "trained, with norms → tq2_0", "trained, logits alone → tq2_0"
Q2_K = "q2_k, imatrix"


def rows(plan: Plan) -> list[PassRow]:
    """Baselines, then every training."""
    seen = plan.steps * plan.batch
    options = {TRAINED: "", NO_RAMP: ",ramp=0", NORMS: ",norms=true", NO_RELATIONS: ",relations=0"}
    trained = [
        PassRow(Row(label, "tq2_0", (f"ternary:{plan.learning},rate=0.001{more}",), False), seen)
        for label, more in options.items()
    ]
    return [PassRow(Row(Q2_K, "q2_k")), PassRow(Row(ROUNDED, "tq2_0", (), False)), *trained]


def claims(found: Mapping[str, Measured]) -> list[Claim]:
    """Each part's worth, in perplexity."""
    pairs = [
        ("rounding alone against training", ROUNDED, TRAINED, True),
        ("λ at once against a ramp", NO_RAMP, TRAINED, None),
        ("without norms against with", TRAINED, NORMS, None),
        ("logits alone against relations too", NO_RELATIONS, TRAINED, None),
        ("trained against Q2_K", TRAINED, Q2_K, None),
    ]
    return [
        Claim(text, "falls" if must else "printed", f"{found[a].perplexity:.2f} against {found[b].perplexity:.2f}",
              found[b].perplexity < found[a].perplexity if must else None)
        for text, a, b, must in pairs if a in found and b in found
    ]  # fmt: skip
