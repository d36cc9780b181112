"""Digests of what stages are made of: a stage is done again when one of its inputs is another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.export.recipe.pass_stages import following_key
from edgepack.file_digest import file_sha256
from edgepack.pipeline.derivation import FILES, model_files, versions

if TYPE_CHECKING:
    from edgepack.pipeline.request import ExportRequest
    from edgepack.pipeline.stages.staged_recipe import StagedRecipe


def first_key(recipe: StagedRecipe, request: ExportRequest) -> str:
    """Of everything that the first pass depends on: the model's files, the calibration, the device, the versions."""
    read = [(name, file_sha256(path, "digesting the source", request.progress))
            for name, path in model_files(request.source)]  # fmt: skip
    about = sorted((name, version) for name, version in versions(request).items())
    calibration = {} if recipe.passes is None else dict(recipe.passes.calibration)
    text = calibration.pop("text", None)
    return following_key(
        "", read, about, sorted(calibration.items()), _digest(text), request.device, _adapter(request), request.pre
    )


def export_key(key: str, recipe: StagedRecipe, request: ExportRequest, measures: object) -> str:
    """Of everything that the exported file depends on, and of what is measured on the way to it.

    Args:
        key: of `first_key`.
        recipe: the whole.
        request: its export.
        measures: how the models between are scored; None where they are not.
    """
    settings = sorted((name, value) for name, value in recipe.export.items() if name not in FILES)
    files = [(name, _digest(recipe.export[name])) for name in sorted(FILES) if name in recipe.export]
    steps = [] if recipe.passes is None else [(step.name, sorted(step.given.items())) for step in recipe.passes.passes]
    return following_key(key, settings, files, steps, measures, packs_inside(recipe, request))


def scoring_key(recipe: StagedRecipe) -> tuple[object, ...]:
    """Of how text is scored."""
    settings = dict(recipe.scoring)
    return (*sorted((name, settings[name]) for name in ("ctx", "chunks")), _digest(settings["text"]))


def packs_inside(recipe: StagedRecipe, request: ExportRequest) -> bool:
    """Whether making the file packs it: where the size of the archive decides what the file is."""
    return recipe.pack is not None and (request.target is None or request.kind == "wire" or request.has_budget)


def _adapter(request: ExportRequest) -> object:
    return None if request.adapter is None else _digest(str(request.adapter))


def _digest(path: object) -> object:
    """Of a file, or of all files in a folder; the name where there is none."""
    if path is None:
        return None
    place = Path(str(path))
    if place.is_dir():
        return [(each.name, file_sha256(each)) for each in sorted(place.iterdir()) if each.is_file()]
    return file_sha256(place) if place.is_file() else str(place)
