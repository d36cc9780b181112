"""`edgepack export --recipe` and `--pass`: passes change the weights before the file is written.

The work is `pipeline.passes_goals`'.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.cli.export_gated import gates_of, judge, scoring_options, tried_json
from edgepack.cli.export_options import parse_overrides
from edgepack.cli.output import note, print_json, terminal_progress
from edgepack.errors import DependencyError, UsageError
from edgepack.quantities import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.export.plan import ExportPlan
    from edgepack.pipeline.passes_goals import PassesExport, Written
    from edgepack.pipeline.recipe import Recipe

# Options of `edgepack export` that mean something together with passes.
_TAKEN = {
    "recipe", "passes", "device", "calibration", "output", "pre", "tensor_types", "output_type", "embedding_type",
    "pure", "dry_run", "pack", "threads", "max_size", "validate", "min_agreement", "max_kl", "text", "chunks",
}  # fmt: skip


def export_recipe(model: Path, target: str | None, *, as_json: bool, **options: Any) -> int:
    """Run the passes that the options name on MODEL and write the file; gives the exit code."""
    started = time.monotonic()
    recipe = recipe_of(options)
    _refuse_the_rest(model, target, options)
    gated = options["min_agreement"] is not None or options["max_kl"] is not None
    with tempfile.TemporaryDirectory(prefix="edgepack-passes-") as folder:
        export = _open(model, target, recipe, options, Path(folder))
        if options["dry_run"]:
            plan = export.outline()
            print_outline(plan, export.request.path_for(plan), as_json=as_json)
            return 0
        more: dict[str, Any] = {}
        judged = None
        if target is None and gated:
            scoring = scoring_options(options)
            written, ladder = export.write_smallest(gates_of(options), options["text"], scoring, note)
            more = tried_json(ladder)
        else:
            written = export.write()
            if gated or options["validate"]:
                judged = judge(model, written.path, options, written.adapters)
                more = judged.as_json
    _report(written, time.monotonic() - started, as_json=as_json, more=more)
    return judged.report(quiet=as_json) if judged else 0


def _open(model: Path, target: str | None, recipe: Recipe, options: Mapping[str, Any], folder: Path) -> PassesExport:
    """The export that the options ask for; with `--dry-run`, without passes."""
    from edgepack.quant.types.targets import find_target

    try:
        from edgepack.pipeline.passes import RecipeOptions
        from edgepack.pipeline.passes_goals import PassesExport, PassesRequest
    except ModuleNotFoundError as error:
        needed = "use pip install 'edgepack[compress]'"
        raise DependencyError(f"passes: '{error.name}' is not installed, {needed}") from None
    if options["dry_run"]:
        recipe = replace(recipe, passes=())
    overrides = parse_overrides(
        options["tensor_types"], options["output_type"], options["embedding_type"], pure=options["pure"]
    )
    request = PassesRequest(
        model, recipe, find_target(target) if target else None, output=options["output"],
        max_bytes=options["max_size"], pack=options["pack"], threads=options["threads"],
    )  # fmt: skip
    settings = RecipeOptions(
        folder, overrides, pre=options["pre"], device=options["device"], progress=terminal_progress
    )
    return PassesExport(request, settings, terminal_progress)


def recipe_of(options: Mapping[str, Any]) -> Recipe:
    """What `--recipe` or `--pass` say, with `--calibration` as the text where one is given."""
    from edgepack.pipeline.recipe import inline_recipe, read_recipe

    if options["recipe"] is not None and options["passes"]:
        raise UsageError("--recipe and --pass: expected one of them, got both")
    recipe = inline_recipe(options["passes"], {}) if options["recipe"] is None else read_recipe(options["recipe"])
    if options["calibration"] is not None:
        recipe = replace(recipe, calibration={**recipe.calibration, "text": str(options["calibration"])})
    return recipe


def _refuse_the_rest(model: Path, target: str | None, options: Mapping[str, Any]) -> None:
    if options["imatrix"] is not None:
        raise UsageError("--imatrix: passes change what enters the layers: give --calibration TEXT instead")
    if options["pack"] and options["shard_size"]:
        raise UsageError("--pack and --shard-size: an archive is one file, expected only one of them")
    empty = (None, False, (), "merge")
    left = sorted(name for name, value in options.items() if name not in _TAKEN and value not in empty)
    if left:
        raise UsageError(f"--{left[0].replace('_', '-')}: not together with --recipe or --pass")
    if model.is_file():
        raise UsageError(f"--recipe and --pass: expected a Hugging Face folder, got the file '{model}'")


def print_outline(plan: ExportPlan, path: Path, *, as_json: bool) -> None:
    """What a dry run tells."""
    from edgepack.cli.export import print_plan, tensors_json

    if as_json:
        print_json({
            "output": str(path), "bytes": plan.total_bytes, "seconds": 0.0, "target": plan.target.name,
            "source_bytes": plan.source_bytes, "tensors": tensors_json(plan),
        })  # fmt: skip
    else:
        print_plan(plan, path)


def _report(written: Written, seconds: float, *, as_json: bool, more: Mapping[str, Any]) -> None:
    from edgepack.cli.export import tensors_json

    prepared = written.prepared
    if as_json:
        print_json({
            "output": str(written.path), "bytes": written.bytes, "seconds": round(seconds, 3),
            "target": prepared.plan.target.name, "source_bytes": prepared.plan.source_bytes,
            "passes": [dict(figures) for figures in prepared.figures], "notes": list(prepared.notes),
            "adapters": [{"output": str(path), "bytes": path.stat().st_size} for path in written.adapters],
            "tensors": tensors_json(prepared.plan), **more,
        })  # fmt: skip
        return
    for figures in prepared.figures:
        measured = ", ".join(f"{key} {_short(value)}" for key, value in figures.items() if key != "name")
        note(f"{figures['name']}: {measured}")
    for line in prepared.notes:
        note(f"note: {line}")
    for path in written.adapters:
        note(f"{path}: {format_size(path.stat().st_size)}, a LoRA for llama.cpp to apply at run time")
    label = prepared.plan.target.label
    note(f"{written.path}: {format_size(written.bytes)} as {label}, in {format_duration(seconds)}")


def _short(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
