"""Matrices predicted and rounded by a crew, into the scratch folder of a refinement: what is there is not done again.

What is found is `model`'s, who the crew is the caller's.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from edgepack.quant.codecs.torch_threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgepack.crew import Crew
    from edgepack.export.plan import PlannedTensor
    from edgepack.export.refine.model import RefinedModel


def _work_bytes(tensor: PlannedTensor) -> int:
    """What work on a matrix takes: it and its candidates, H and its factor in both precisions."""
    return 24 * prod(tensor.info.shape[-2:]) + 32 * tensor.info.shape[-1] ** 2


# A model as workers take it up, and the tensors that pieces of work name by their numbers.
Matrices = tuple["RefinedModel", tuple["PlannedTensor", ...]]


def predict(context: Matrices, number: int) -> str:
    """Predict for one tensor, into the scratch folder; what a worker does."""
    with one_thread():
        return context[0].prospect(context[1][number])[0]


def round_kept(context: Matrices, number: int) -> str:
    """Round one tensor into the scratch folder; what a worker does."""
    with one_thread():
        return context[0].round_kept(context[1][number])[0]


def crew_matrices(
    model: RefinedModel, work: Callable[[Matrices, int], str], tensors: Sequence[PlannedTensor], crew: Crew,
    advance: Callable[[int], object],
) -> None:  # fmt: skip
    """Let a crew do `work` on every tensor; what it finds lies in the model's scratch folder, as a killed run's does.

    Raises:
        NumericError: as `RefinedModel.rounded`.
    """
    context = crew.share((model.alone(), tuple(tensors)))
    for _name in crew.map(work, context, range(len(tensors)), need=lambda number: _work_bytes(tensors[number])):
        advance(1)
