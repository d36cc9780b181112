"""What a request reads, opened: the checkpoint with its adapter merged, and the passes that come in front.

What is made of it is left to the makers.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import DependencyError
from edgepack.export.backwards.checkpoint import opened_source, scratch_note
from edgepack.export.mapped_model import map_checkpoint, merged, open_merged, open_model
from edgepack.export.plan import stored_bytes
from edgepack.export.recipe.changed import ChangedModel
from edgepack.quant.types.choice import parse_overrides

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepack.export.mapped import MappedModel
    from edgepack.export.recipe.passes import Passes
    from edgepack.model import Checkpoint
    from edgepack.pipeline.request import ExportRequest
    from edgepack.quant.passes.recipe import Recipe
    from edgepack.quant.types.choice import Overrides


def merged_adapter(request: ExportRequest) -> Path | None:
    """The adapter that becomes part of the weights."""
    return None if request.adapter is None or request.adapter_mode != "merge" else Path(request.adapter)


def separate_adapter(request: ExportRequest) -> Path | None:
    """The adapter that stays a file of its own."""
    return None if request.adapter is None or request.adapter_mode == "merge" else Path(request.adapter)


@contextmanager
def with_original(request: ExportRequest) -> Iterator[ExportRequest]:
    """The request with its GGUF read back into a checkpoint, where what it asks for needs one, while the block lasts.

    Raises:
        EdgepackError: as `export.backwards.checkpoint.read_back`.
    """
    if not request.needs_checkpoint or not request.source.is_file():
        yield request
        return
    with opened_source(request.source, allow_requantize=request.allow_requantize) as checkpoint:
        notes = (*checkpoint.notes, scratch_note(checkpoint))
        yield replace(request, original=replace(checkpoint, notes=notes))


def opened_checkpoint(request: ExportRequest) -> Checkpoint:
    """The checkpoint, its adapter merged; raises as `export.mapped_model.open_merged`."""
    if request.original is not None:
        return merged(request.original, merged_adapter(request))
    return open_merged(request.source, merged_adapter(request))


def opened_model(request: ExportRequest) -> MappedModel:
    """The source under GGUF names, as it is or with its adapter merged; raises as `export.mapped_model.open_model`."""
    adapter, again = merged_adapter(request), request.allow_requantize
    if request.original is not None:
        return map_checkpoint(opened_checkpoint(request), pre=request.pre, allow_requantize=again)
    return open_model(request.source, pre=request.pre, adapter=adapter, allow_requantize=again)


def bare_model(request: ExportRequest) -> MappedModel:
    """The source under GGUF names without an adapter, whatever types it is stored in: what a device is asked about.

    Raises as `export.mapped_model.open_model`.
    """
    if request.remote and request.original is not None:
        return map_checkpoint(request.original, pre=request.pre, allow_requantize=True)
    return open_model(request.source, pre=request.pre, allow_requantize=True)


def source_bytes(request: ExportRequest) -> int:
    """What the tensors of the model take in the source, whatever passes make of them; raises as `opened_model`."""
    return sum(stored_bytes(rows.dtype, prod(rows.shape)) for rows in opened_model(request).tensors.values())


def read_request_recipe(request: ExportRequest) -> Recipe:
    """What `--recipe` or `--pass` say, with `--calibration` as the text where one is given; raises RecipeError.

    Smoothing for refinement is the last of the passes.
    """
    from edgepack.quant.passes.recipe import followed_by, inline_recipe, read_recipe

    recipe = inline_recipe(request.passes, {}) if request.recipe is None else read_recipe(Path(request.recipe))
    if request.smooth:
        recipe = followed_by(recipe, "smooth")
    if request.calibration is not None:
        recipe = replace(recipe, calibration={**recipe.calibration, "text": str(request.calibration)})
    return recipe


@contextmanager
def work_of(request: ExportRequest) -> Iterator[Passes]:
    """The request's recipe at work on its checkpoint, while the block lasts; a dry run does none of the work.

    Raises:
        DependencyError: torch is not installed.
        RecipeError: the recipe is wrong.
    """
    try:
        from edgepack.export.recipe.passes import Passes
        from edgepack.export.recipe.values import RecipeOptions
    except ModuleNotFoundError as error:
        needed = "use pip install 'edgepack[compress]'"
        raise DependencyError(f"passes: '{error.name}' is not installed, {needed}") from None
    recipe, checkpoint = read_request_recipe(request), opened_checkpoint(request)
    with _scratch_of(request, recipe, checkpoint) as folder:
        if request.dry_run:
            checkpoint, recipe = unworked(checkpoint, recipe), replace(recipe, passes=())
        options = RecipeOptions(
            folder, overrides_of(request), pre=request.pre, device=request.device, resumable=not request.dry_run,
            factors=None if request.factors is None else Path(request.factors), progress=request.progress,
            crew=request.crew,
            stages=None if request.dry_run else request.stages,
        )  # fmt: skip
        yield Passes(checkpoint, recipe, options)


@contextmanager
def _scratch_of(request: ExportRequest, recipe: Recipe, checkpoint: Checkpoint) -> Iterator[Path]:
    if request.dry_run:
        with tempfile.TemporaryDirectory(prefix="edgepack-passes-") as folder:
            yield Path(folder)
        return
    if request.stages is not None:  # what is kept there lies under the digest of its inputs
        yield request.stages.folder
        return
    from edgepack.pipeline.makers.pass_scratch import pass_scratch

    with pass_scratch(request, recipe, checkpoint) as kept:
        yield kept


def unworked(checkpoint: Checkpoint, recipe: Recipe) -> Checkpoint:
    """The checkpoint as large as the recipe will leave it, without any of its work: which layers go is not known."""
    dropped = sum(
        step.settings["layers"]
        for step in recipe.passes
        if step.name == "prune" and step.settings["method"] == "layers"
    )
    if not dropped:
        return checkpoint
    from edgepack.export.config import ModelConfig
    from edgepack.quant.passes.prune.layers import keep_layers

    return keep_layers(checkpoint, range(max(1, ModelConfig(checkpoint.config).n_layers - dropped)))


def changed_by(passes: Passes | None, request: ExportRequest) -> ChangedModel:
    """The model that a maker without ggml's types starts from; raises as `Passes.changed`."""
    return ChangedModel(opened_checkpoint(request)) if passes is None else passes.changed()


def overrides_of(request: ExportRequest) -> Overrides:
    """The types chosen by hand; raises UsageError for an expression or a type that is none."""
    return parse_overrides(
        request.tensor_types, output=request.output_type, embedding=request.embedding_type, pure=request.pure
    )
