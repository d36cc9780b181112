"""Bars on a file's weights themselves: how far its tensors may be from the original's. Pure functions.

Errors are measured by `findings`; bars on what a model says are `validate.Validation`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.edge.fidelity.gates import GateResult

if TYPE_CHECKING:
    from edgepack.edge.fidelity.gates import Gates
    from edgepack.edge.fidelity.run import FileFindings, WeightError


@dataclass(frozen=True)
class Reconstruction:
    """Relative errors ‖Ŵ − W‖ / ‖W‖ of a file's matrices; vectors (norms, biases) do not count.

    Attributes:
        tensors: how many matrices.
        mean: over matrices, each counting once.
        largest: of one matrix.
        largest_name: its GGUF name; empty where there is none.
    """

    tensors: int
    mean: float
    largest: float
    largest_name: str


def reconstruction_of(findings: FileFindings) -> Reconstruction:
    """The errors of all matrices together."""
    matrices: list[WeightError] = [error for error in findings.weights if error.is_matrix]
    if not matrices:
        return Reconstruction(0, 0.0, 0.0, "")
    worst = max(matrices, key=lambda error: error.relative_error)
    mean = sum(error.relative_error for error in matrices) / len(matrices)
    return Reconstruction(len(matrices), mean, worst.relative_error, worst.name)


def reconstruction_gates(findings: FileFindings | None, gates: Gates) -> list[GateResult]:
    """How the bars on weights went; those that are None are left out, and without findings none is cleared."""
    bars = (("max-mean-error", gates.max_mean_error), ("max-tensor-error", gates.max_tensor_error))
    if findings is None:
        return [GateResult(name, False, "the weights were not compared") for name, bar in bars if bar is not None]
    found, results = reconstruction_of(findings), []
    measured = (
        ("mean relative error of the matrices", found.mean),
        (f"relative error of '{found.largest_name}'", found.largest),
    )
    for (name, bar), (what, value) in zip(bars, measured, strict=True):
        if bar is not None:
            detail = f"{what} {100 * value:.3g} %, must be below {100 * bar:.3g} %"
            results.append(GateResult(name, value < bar, detail))
    return results
