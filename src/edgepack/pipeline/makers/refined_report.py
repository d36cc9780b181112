"""What a refined export tells of its file: a line, figures, and what was rounded without a curvature."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.gguf import keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.export.plan import ExportPlan
    from edgepack.export.refine.values import Allocation, RefinedFile
    from edgepack.pipeline.outline import Json


def figures_of(
    found: RefinedFile, allocation: Allocation, plan: ExportPlan, weights: int
) -> tuple[tuple[str, ...], dict[str, Json]]:
    """The line that is told, and the figures for scripts; `weights` are those of the file."""
    bits = 8 * allocation.bytes / weights
    told = f"refined: {bits:.2f} bits a weight, predicted KL {found.loss:.4f} of weights and {found.inputs:.4f} of"
    more: dict[str, Json] = {
        "refined": {
            "budget": plan.metadata[keys.REFINE_BUDGET].value, "bits_per_weight": round(bits, 4),
            "predicted_kl": allocation.divergence, "predicted_kl_of_weights": found.loss,
            "predicted_kl_of_inputs": found.inputs, "without_curvature": list(found.plain),
        }
    }  # fmt: skip
    return (f"{told} the 8-bit inputs of products",), more


def plain_notes(names: Sequence[str]) -> tuple[str, ...]:
    """A line where tensors are the plain encoder's."""
    if not names:
        return ()
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (f"refined: '{names[0]}'{more} are no linear layers that calibration watches: the plain encoder's",)
