"""Refuses, before any work, what cannot come true: constraints that contradict the export, or the model, or each other.

It plans the file as a dry run does, to the byte, and reads no weight.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from edgepack.errors import RecipeError
from edgepack.pipeline.export import run_export
from edgepack.pipeline.makers.opened import opened_checkpoint, unworked, with_original
from edgepack.pipeline.options import CODED, GGUF, WIRE
from edgepack.quant.passes.training import sequences_learnt
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from edgepack.model import Checkpoint
    from edgepack.pipeline.export_result import ExportResult
    from edgepack.pipeline.request import ExportRequest
    from edgepack.pipeline.stages.staged_recipe import StagedRecipe
    from edgepack.quant.passes.recipe import Recipe

_USUAL_LENGTH = 512  # of a calibration sequence, where the recipe and the model say nothing else
_LEARNT_BYTES = 16  # of a weight that learns, in float32: itself, its gradient, AdamW's two moments


def planned(request: ExportRequest) -> ExportResult:
    """What the export would be, without its work; raises as `run_export`."""
    collects = request.kind == CODED or (request.kind == GGUF and not request.has_passes and not request.refines)
    dry = replace(request, dry_run=True, skip_harmful=False, max_mean_error=None, max_tensor_error=None)
    return run_export(replace(dry, calibration=None) if collects else dry)


def refuse_contradictions(recipe: StagedRecipe, request: ExportRequest, plan: ExportResult) -> None:
    """Refuse constraints that no run of this recipe on this model can meet.

    Args:
        recipe: the whole.
        request: its export.
        plan: of it.

    Raises:
        RecipeError: the rule and what was got, with the key's path.
    """
    bars = recipe.constraints
    if bars.max_accuracy_drop == 0:
        raise RecipeError("constraints.max_accuracy_drop: expected more than 0: no finite text shows that nothing is"
                          " lost, got 0")  # fmt: skip
    _refuse_goals(recipe, request)
    least = least_bytes(recipe, request, plan)
    if bars.max_size is not None and least > bars.max_size:
        raise RecipeError(
            f"constraints.max_size: {plan.outline.target} takes at least {format_size(least)} ({least} bytes), got"
            f" {format_size(bars.max_size)}"
        )
    ratio = plan.outline.source_bytes / least if least else float("inf")
    if bars.min_ratio is not None and ratio < bars.min_ratio:
        raise RecipeError(
            f"constraints.min_ratio: {plan.outline.target} takes at least {format_size(least)} of"
            f" {format_size(plan.outline.source_bytes)}, a ratio of at most {ratio:.3f}, got {bars.min_ratio:g}"
        )
    if bars.max_memory is not None and recipe.passes is not None:
        _refuse_memory(recipe.passes, request, bars.max_memory)


def _refuse_goals(recipe: StagedRecipe, request: ExportRequest) -> None:
    """What the export is told to reach beside what it is held against."""
    bars = recipe.constraints
    goal = request.max_bytes
    if bars.max_size is not None and goal is not None and request.kind == WIRE and goal > bars.max_size:
        raise RecipeError(
            f"constraints.max_size: the export is told to fill {format_size(goal)}, got {format_size(bars.max_size)}"
        )


def _refuse_memory(recipe: Recipe, request: ExportRequest, limit: int) -> None:
    """What passes are told they may take, or take at least, against what the process may."""
    for number, step in enumerate(recipe.passes):
        allowed = step.settings.get("max_memory")
        if allowed is not None and allowed > limit:
            raise RecipeError(
                f"constraints.max_memory: pass[{number}].max_memory allows {format_size(allowed)}, got"
                f" {format_size(limit)}"
            )
    floor, what = _least_memory(recipe, request)
    if floor > limit:
        raise RecipeError(f"constraints.max_memory: {what} take {format_size(floor)}, got {format_size(limit)}")


def least_bytes(recipe: StagedRecipe, request: ExportRequest, plan: ExportResult) -> int:
    """What is shipped has at least so many bytes; exact where the GGUF itself is shipped and its plan is.

    Zeros that passes leave pack without a limit that is known: then an archive has none.
    """
    outline = plan.outline
    if request.kind == WIRE:
        return 0  # its archive has the size that it is told
    if recipe.pack is None:
        return outline.shipped_bytes if outline.is_exact else outline.bytes
    zeros = recipe.passes is not None and any(step.leaves_zeros for step in recipe.passes.passes)
    return 0 if zeros else int(outline.least_packed_share * outline.bytes)


def _least_memory(recipe: Recipe, request: ExportRequest) -> tuple[int, str]:
    """Bytes that the passes take at least, and of what: blocks come one by one, who learns holds a whole model."""
    if not recipe.passes:
        return 0, ""
    with with_original(request) as opened:
        checkpoint = opened_checkpoint(opened)
    reads = any(step.needs_tokens for step in recipe.passes)
    one = 4 * (_largest_block(checkpoint) + (_activations(recipe, checkpoint) if reads else 0))
    if not any(sequences_learnt(step.settings) for step in recipe.passes):
        return one, "one block and the activations of the calibration"
    learning = _LEARNT_BYTES * unworked(checkpoint, recipe).weight_count
    return max(one, learning), "weights that learn, their gradients and two moments"


def _largest_block(checkpoint: Checkpoint) -> int:
    """Weights of the largest block: tensors that share all before and the number itself in `….3.…`."""
    blocks: Counter[str] = Counter()
    for name, spec in checkpoint.tensors.specs.items():
        if found := re.match(r".*?\.\d+\.", name):
            blocks[found[0]] += prod(spec.shape)
    return max(blocks.values(), default=0)


def _activations(recipe: Recipe, checkpoint: Checkpoint) -> int:
    config = checkpoint.config.get("text_config", checkpoint.config)
    asked = recipe.calibration
    length = asked["length"] or min(_USUAL_LENGTH, int(config.get("max_position_embeddings") or _USUAL_LENGTH))
    return int(asked["sequences"] * length * int(config.get("hidden_size") or config.get("n_embd") or 0))
