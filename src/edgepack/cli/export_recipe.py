"""`edgepack export --recipe` and `--pass`: passes change the weights before the file is written.

The work is `pipeline_passes`' and `pipeline_corrections`'.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.cli.output import note, print_json, terminal_progress
from edgepack.errors import DependencyError, UsageError
from edgepack.quantities import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.pipeline_passes import PreparedExport
    from edgepack.recipe import Recipe

# Options of `edgepack export` that mean something together with passes.
_TAKEN = {
    "recipe", "passes", "device", "calibration", "output", "pre", "tensor_types", "output_type", "embedding_type",
    "pure", "dry_run", "pack", "threads", "resume",
}  # fmt: skip


@dataclass(frozen=True)
class _Written:
    """Files of one export.

    Attributes:
        path: the GGUF, or the archive.
        bytes: its length.
        adapters: LoRA files beside it.
        ranks: rank of each correction.
    """

    path: Path
    bytes: int
    adapters: tuple[Path, ...]
    ranks: tuple[int, ...]


def export_recipe(model: Path, target: str | None, *, as_json: bool, **options: Any) -> None:
    """Run the passes that the options name on MODEL and write the file."""
    from edgepack.atomic_file import check_output
    from edgepack.cli.export_options import parse_overrides
    from edgepack.export.checkpoint import open_checkpoint
    from edgepack.export.naming import file_name
    from edgepack.quant.targets import find_target

    started = time.monotonic()
    recipe = _recipe(options)
    _refuse_the_rest(model, target, options)
    assert target is not None
    chosen = find_target(target)
    checkpoint = open_checkpoint(model)
    if options["output"] is not None:
        check_output(options["output"])
    overrides = parse_overrides(
        options["tensor_types"], options["output_type"], options["embedding_type"], pure=options["pure"]
    )
    with tempfile.TemporaryDirectory(prefix="edgepack-passes-") as folder:
        try:
            from edgepack.pipeline_passes import RecipeOptions, prepare_export
        except ModuleNotFoundError as error:
            needed = "use pip install 'edgepack[compress]'"
            raise DependencyError(f"passes: '{error.name}' is not installed, {needed}") from None
        if options["dry_run"]:
            recipe = replace(recipe, passes=(), calibration={**recipe.calibration, "importance": False})
        settings = RecipeOptions(
            Path(folder), overrides, pre=options["pre"], device=options["device"], progress=terminal_progress
        )
        prepared = prepare_export(checkpoint, recipe, chosen, settings)
        name = file_name(prepared.plan.metadata, chosen.label)
        path = options["output"] or Path(f"{Path(name).stem}.edgepack" if options["pack"] else name)
        check_output(path, None if options["dry_run"] else prepared.plan.total_bytes)
        written = _Written(path, prepared.plan.total_bytes, (), ())
        if not options["dry_run"]:
            written = _write(prepared, path, options)
    _report(prepared, written, time.monotonic() - started, as_json=as_json, dry_run=options["dry_run"])


def _recipe(options: Mapping[str, Any]) -> Recipe:
    """What `--recipe` or `--pass` say, with `--calibration` as the text where one is given."""
    from edgepack.recipe import inline_recipe, read_recipe

    if options["recipe"] is not None and options["passes"]:
        raise UsageError("--recipe and --pass: expected one of them, got both")
    recipe = inline_recipe(options["passes"], {}) if options["recipe"] is None else read_recipe(options["recipe"])
    if options["calibration"] is not None:
        recipe = replace(recipe, calibration={**recipe.calibration, "text": str(options["calibration"])})
    return recipe


def _refuse_the_rest(model: Path, target: str | None, options: Mapping[str, Any]) -> None:
    if options["imatrix"] is not None:
        raise UsageError("--imatrix: passes change what enters the layers: give --calibration TEXT instead")
    empty = (None, False, (), "merge")
    left = sorted(name for name, value in options.items() if name not in _TAKEN and value not in empty)
    if left:
        raise UsageError(f"--{left[0].replace('_', '-')}: not together with --recipe or --pass")
    if target is None or target.startswith("edge-"):
        raise UsageError(f"--recipe and --pass need a gguf target, got '{target}'")
    if model.is_file():
        raise UsageError(f"--recipe and --pass: expected a Hugging Face folder, got the file '{model}'")


def _write(prepared: PreparedExport, path: Path, options: Mapping[str, Any]) -> _Written:
    """Write the GGUF and what goes beside it; with `--pack`, one archive of all."""
    from edgepack.export.gguf_file import write_gguf
    from edgepack.packaging.pack import pack_archive

    if not options["pack"]:
        size = write_gguf(prepared.plan, path, threads=options["threads"], progress=terminal_progress)
        adapters, ranks = _write_adapters(prepared, path, path.parent)
        return _Written(path, size, adapters, ranks)
    with tempfile.TemporaryDirectory(prefix=".edgepack-", dir=path.parent) as folder:
        gguf = Path(folder) / f"{path.stem}.gguf"
        write_gguf(prepared.plan, gguf, threads=options["threads"], progress=terminal_progress)
        adapters, ranks = _write_adapters(prepared, gguf, Path(folder))
        result = pack_archive(gguf, path, include=adapters, threads=options["threads"], progress=terminal_progress)
        return _Written(path, result.bytes, (), ranks)


def _write_adapters(prepared: PreparedExport, gguf: Path, folder: Path) -> tuple[tuple[Path, ...], tuple[int, ...]]:
    """Write corrections and factors kept apart; their paths, and the ranks of the corrections."""
    from edgepack.pipeline_corrections import write_correction, write_factors_apart

    paths, ranks = [], []
    if prepared.low_rank:
        paths.append(folder / f"{gguf.stem}-factors-lora.gguf")
        write_factors_apart(prepared, paths[-1])
    for step in prepared.corrections:
        paths.append(folder / f"{gguf.stem}-correction-lora.gguf")
        _, rank = write_correction(prepared, step, gguf, paths[-1], terminal_progress)
        ranks.append(rank)
    return tuple(paths), tuple(ranks)


def _report(prepared: PreparedExport, written: _Written, seconds: float, *, as_json: bool, dry_run: bool) -> None:
    from edgepack.cli.export import print_plan, tensors_json

    if as_json:
        print_json({
            "output": str(written.path), "bytes": written.bytes, "seconds": round(seconds, 3),
            "target": prepared.plan.target.name, "source_bytes": prepared.plan.source_bytes,
            "passes": [dict(figures) for figures in prepared.figures], "notes": list(prepared.notes),
            "adapters": [{"output": str(path), "bytes": path.stat().st_size} for path in written.adapters],
            "tensors": tensors_json(prepared.plan),
        })  # fmt: skip
        return
    if dry_run:
        print_plan(prepared.plan, written.path)
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
