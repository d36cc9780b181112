"""Runs a recipe on a model: checks the whole before any work, then stage after stage.

What a stage does is `stages.work`'s, how a recipe looks `stages.staged_recipe`'s.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgepack.errors import EdgepackError, RecipeError, UsageError
from edgepack.files.claim import check_output, claimed_output
from edgepack.pipeline.request import ExportRequest
from edgepack.pipeline.stages.contradictions import planned, refuse_contradictions
from edgepack.pipeline.stages.keys import packs_inside
from edgepack.pipeline.stages.log_file import logged
from edgepack.pipeline.stages.memory import PeakMemory
from edgepack.pipeline.stages.metrics import Metrics
from edgepack.pipeline.stages.request import Compressed, CompressRequest
from edgepack.pipeline.stages.runner import STAGES_FOLDER
from edgepack.pipeline.stages.staged_recipe import StagedRecipe, read_staged
from edgepack.pipeline.stages.work import SUMMARY, Run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepack.pipeline.export_result import ExportResult


def run_recipe(request: CompressRequest) -> Compressed:
    """Run a recipe: every stage that is not done yet, in order, with the constraints checked after each.

    Raises:
        RecipeError: the recipe is wrong, or what it asks for cannot come true.
        CheckFailedError: a constraint or a gate is missed; the text has the figures. What was made stays.
        UsageError: a file that no recipe made is in the way, another run uses the folder.
        EdgepackError: whatever a stage finds wrong.
    """
    recipe, started = read_staged(request.recipe), time.monotonic()
    plan = _plan(recipe, request)
    if request.dry_run:
        return Compressed(request.output / plan.output.name, plan.bytes, plan.outline.source_bytes, (), 0.0)
    with ExitStack() as opened:
        _claim(request, opened)
        log = opened.enter_context(logged(request.log))
        metrics = None if request.metrics is None else Metrics(request.metrics)
        memory = opened.enter_context(PeakMemory())
        run = Run(recipe, request, _export_of(recipe, request), plan, metrics, log, memory)
        try:
            return run.all_stages(started)
        except EdgepackError as error:
            log(f"ended: {error}")
            raise


def _plan(recipe: StagedRecipe, request: CompressRequest) -> ExportResult:
    """The file as it will be, with everything refused that cannot come true; nothing is written."""
    if recipe.certify is not None and recipe.pack is None:
        raise RecipeError("certify: expected [pack] with it: the certificate lies in the archive")
    if recipe.certify is not None and "adapter" in recipe.export:
        raise RecipeError("certify: measures against the model without an adapter, got export.adapter")
    if not request.output.parent.is_dir():
        raise UsageError(f"output '{request.output}': folder '{request.output.parent}' does not exist")
    with _with_passes(recipe, _export_of(recipe, request)) as export:
        plan = planned(replace(export, pack=packs_inside(recipe, export)))
        refuse_contradictions(recipe, export, plan)
    return plan


@contextmanager
def _with_passes(recipe: StagedRecipe, export: ExportRequest) -> Iterator[ExportRequest]:
    """The export with its passes in a file, while the block lasts."""
    if recipe.passes is None:
        yield export
        return
    with TemporaryDirectory(prefix="edgepack-recipe-") as folder:
        path = Path(folder) / "passes.toml"
        path.write_text(recipe.passes_text, encoding="utf-8")
        yield replace(export, recipe=path)


def _export_of(recipe: StagedRecipe, request: CompressRequest) -> ExportRequest:
    """The recipe's export, without its passes."""
    return ExportRequest(
        request.model, progress=request.progress, tell=request.tell, device=request.device, threads=request.threads,
        **recipe.export,
    )  # fmt: skip


def _claim(request: CompressRequest, opened: ExitStack) -> None:
    """Make the folder, keep other runs out of it, and look at what is written beside it."""
    folder, inputs = request.output, [request.model, request.recipe]
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output '{folder}': expected a folder, got a file")
    for written in (request.metrics, request.log):
        if written is not None:
            check_output(written, inputs=inputs, force=True)
    folder.mkdir(exist_ok=True)
    (folder / STAGES_FOLDER).mkdir(exist_ok=True)
    opened.enter_context(claimed_output(folder / SUMMARY, inputs=inputs, force=True))
