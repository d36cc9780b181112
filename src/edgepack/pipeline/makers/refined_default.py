"""Whether an export is refined where nobody said so, and what refinement refuses that stands in front of it.

Which options go together without looking at files is `pipeline.accepted`'s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.errors import CalibrationError, CheckpointError, RecipeError, UnsupportedModelError, UsageError
from edgepack.pipeline.makers.opened import opened_checkpoint, read_request_recipe, separate_adapter
from edgepack.pipeline.options import GGUF
from edgepack.pipeline.request import refinable
from edgepack.quant.passes.recipe import followed_by
from edgepack.quant.passes.registry import ROUNDED, find_pass

if TYPE_CHECKING:
    from edgepack.pipeline.request import ExportRequest
    from edgepack.quant.passes.recipe import PassStep, Recipe

_FOR_ENCODERS = "awq"  # its scales make good what the plain encoder does, so that by default it gets the plain encoder


def decided(request: ExportRequest) -> ExportRequest:
    """The request with `refine` and `smooth` said, where they could be either; it tells why a default does not hold.

    Raises:
        UsageError: refinement is asked for behind a pass that rounds or corrects, or bytes that only it can meet.
        RecipeError: the recipe is wrong.
    """
    found = _refine_decided(request)
    return replace(found, smooth=smooths(found) if found.refine else None)


def smooths(request: ExportRequest) -> bool:
    """Whether scales and channels are moved before refining.

    By default not beside an adapter, which was made for them as they are, nor after a pass that folded its own.
    """
    if request.smooth is not None:
        return request.smooth
    if request.calibration is None or separate_adapter(request) is not None:
        return False
    recipe = read_request_recipe(request)
    try:
        followed_by(recipe, "smooth")
    except RecipeError:
        return False
    return True


def _refine_decided(request: ExportRequest) -> ExportRequest:
    if request.kind != GGUF or request.only_sees or request.calibration is None or request.refine is False:
        return _checked(request) if request.refine else request
    if request.refine:
        return _checked(request)
    if not (request.refines or _goes_after_passes(request)):
        _refuse_bytes(request, "passes come in front whose work refinement would undo")
        return request
    reason = _unmeasurable(request)
    if reason is not None:
        _refuse_bytes(request, reason)
        request.tell(f"not refined, as by default with --calibration: {reason}")
    return replace(request, refine=reason is None)


def _refuse_bytes(request: ExportRequest, reason: str) -> None:
    """Raise UsageError where something was asked for that only refinement does."""
    speed = request.prefer_speed or None
    given = {
        "--bits": request.bits, "--for-device": request.for_device, "--prefer-speed": speed,
        "--smooth": request.smooth or None, "--tune": request.tune or None,
    }  # fmt: skip
    name = next((name for name, value in given.items() if value is not None), None)
    if name is not None:
        raise UsageError(f"{name}: expected a file that is refined, but {reason}")


def _checked(request: ExportRequest) -> ExportRequest:
    unfit = _unfit(read_request_recipe(request)) if request.has_passes else None
    if unfit is not None:
        raise UsageError(f"--refine: pass '{unfit}' rounds for or corrects its target's types: expected one of the two")
    return request


def _goes_after_passes(request: ExportRequest) -> bool:
    """Whether passes leave weights that nothing has rounded yet, nor made zero to stay so."""
    if not request.has_passes or not request.source.is_dir() or not refinable(request.target):
        return False
    recipe = read_request_recipe(request)
    fitting = not any(step.leaves_zeros or step.name == _FOR_ENCODERS for step in recipe.passes)
    return _unfit(recipe) is None and fitting


def _unfit(recipe: Recipe) -> str | None:
    return next((step.name for step in recipe.passes if _rounds(step)), None)


def _rounds(step: PassStep) -> bool:
    adapter = step.name == "lowrank" and step.settings.get("output") == "adapter"
    rounded = ROUNDED in find_pass(step.name).leaves(step.settings)
    return step.is_correction or rounded or adapter


def _unmeasurable(request: ExportRequest) -> str | None:
    """Why a model's curvature cannot be measured on the text; None where it can."""
    from edgepack.pipeline.makers.refined_calibration import calibration_of
    from edgepack.quant.calibration.blocks import BlockwiseModel
    from edgepack.quant.calibration.curvature import check_tokens
    from edgepack.quant.calibration.own_labels import refuse_shared_keys

    checkpoint = opened_checkpoint(request)
    try:
        refuse_shared_keys(checkpoint.config)
        BlockwiseModel(checkpoint)
        check_tokens(calibration_of(request, checkpoint).tokens)
    except (UnsupportedModelError, CheckpointError, CalibrationError) as error:
        return str(error)
    return None
