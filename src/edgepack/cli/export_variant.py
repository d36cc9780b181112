"""`edgepack export --target edge-…`: a checkpoint becomes a GGUF of the variant; `pipeline.variant` does the work."""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.atomic_file import check_output
from edgepack.cli.output import note, print_json, terminal_progress
from edgepack.errors import UsageError
from edgepack.quantities import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from edgepack.cli.export_gated import Judged
    from edgepack.export.coded.plan import PlannedMatrix
    from edgepack.export.coded.write import CodedReport
    from edgepack.gguf.types import TensorInfo
    from edgepack.pipeline.passes import ChangedModel
    from edgepack.pipeline.variant import PreparedVariant, VariantRequest

# The options of `edgepack export` that make sense for a variant; the others need a gguf target.
TAKEN = ("output", "pre", "adapter", "adapter_mode", "allow_requantize", "imatrix", "calibration", "tensor_codecs",
         "skip_harmful", "recipe", "passes", "device", "validate", "min_agreement", "max_kl", "text", "chunks",
         "max_size", "pack", "resume", "dry_run", "threads")  # fmt: skip


def export_variant(model: Path, target: str, *, as_json: bool, **options: Any) -> int:
    """Code MODEL's matrices and say what each stage of each codec gave; gives the exit code.

    Args:
        model: a Hugging Face folder or a GGUF.
        target: such as `edge-seedlm4`.
        as_json: print one JSON object.
        options: those of `edgepack export` in `TAKEN`.
    """
    from edgepack.cli.export_adapter import write_separate_adapter
    from edgepack.pipeline.variant import prepare_variant, write_prepared

    dry_run, adapter = options["dry_run"], options["adapter"]
    _check_dry_run(options)
    started = time.monotonic()
    with _changed(model, options) as changed:
        prepared = prepare_variant(_request(model, target, options), terminal_progress, changed)
        check_output(prepared.path, None if dry_run else prepared.plan.total_bytes)
        size, reports = (0, None) if dry_run else write_prepared(prepared, terminal_progress)
    more: dict[str, Any] = {}
    if adapter is not None and options["adapter_mode"] == "separate":
        beside = write_separate_adapter(adapter, model, prepared.mapped, prepared.path, dry_run=dry_run)
        more["adapter"] = str(beside)
    judged = None if dry_run else _judged(prepared, options)
    more |= judged.as_json if judged else {}
    seconds = time.monotonic() - started
    if reports is None:
        _report_plan(prepared, seconds, more, as_json=as_json)
    else:
        _report(prepared, (size, reports), seconds, more, as_json=as_json)
    return judged.report(quiet=as_json) if judged else 0


@contextmanager
def _changed(model: Path, options: Mapping[str, Any]) -> Iterator[ChangedModel | None]:
    """What `--recipe` or `--pass` make of the model, while the context is open; None without them."""
    if options["recipe"] is None and not options["passes"]:
        yield None
        return
    from edgepack.cli.export_recipe import recipe_of
    from edgepack.export.checkpoint import open_checkpoint
    from edgepack.pipeline.passes import Passes, RecipeOptions

    for name in ("imatrix", "adapter", "resume", "dry_run"):
        if options[name]:
            raise UsageError(f"--{name.replace('_', '-')}: not together with --recipe or --pass")
    if not model.is_dir():
        raise UsageError(f"--recipe and --pass: expected a Hugging Face folder, got '{model}'")
    with tempfile.TemporaryDirectory(prefix="edgepack-passes-") as folder:
        settings = RecipeOptions(Path(folder), pre=options["pre"], device=options["device"], progress=terminal_progress)
        changed = Passes(open_checkpoint(model), recipe_of(options), settings).changed()
        for line in changed.notes:
            note(line)
        yield changed


def _check_dry_run(options: Mapping[str, Any]) -> None:
    """Refuse what a plan that is exact to the byte cannot be made with."""
    if options["dry_run"] and options["calibration"]:
        raise UsageError("--calibration: collecting is work; with --dry-run give --imatrix FILE")
    if options["dry_run"] and options["skip_harmful"]:
        raise UsageError("--skip-harmful: coding shows which stages help; expected no --dry-run with it")


def _request(model: Path, target: str, options: Mapping[str, Any]) -> VariantRequest:
    from edgepack.pipeline.variant import VariantRequest

    same = ("output", "pre", "allow_requantize", "imatrix", "calibration", "tensor_codecs", "skip_harmful", "pack",
            "resume", "threads")  # fmt: skip
    return VariantRequest(
        model,
        target,
        adapter=options["adapter"] if options["adapter_mode"] == "merge" else None,
        max_bytes=options["max_size"],
        **{name: options[name] for name in same},
    )


def _judged(prepared: PreparedVariant, options: Mapping[str, Any]) -> Judged | None:
    """How the file does against the model that it was made from, where that was asked for."""
    if options["min_agreement"] is None and options["max_kl"] is None and not options["validate"]:
        return None
    from edgepack.cli.export_gated import judge

    return judge(prepared.request.model, prepared.path, options)


def _report_plan(prepared: PreparedVariant, seconds: float, more: Mapping[str, Any], *, as_json: bool) -> None:
    plan, path = prepared.plan, prepared.path
    rows = [_planned(tensor) for tensor in plan.tensors]
    if as_json:
        print_json({**_facts(prepared, plan.total_bytes, seconds), "tensors": rows, **more})
        return
    width = max(len(part["name"]) for row in rows for part in row["components"])
    click.echo(f"{'tensor':<{width}}  {'shape':<18} {'from':<6} {'to':<8} {'bytes':>14}")
    for row in rows:
        shape = " × ".join(map(str, row["shape"]))
        lines = [(row["name"], shape, row["source_type"], row["type"], row["bytes"])]
        if row["type"] != "F32":
            lines += [(part["name"], part["shape"][0], "", part["type"], part["bytes"]) for part in row["components"]]
        for name, extent, source, kind, size in lines:
            click.echo(f"{name:<{width}}  {extent:<18} {source:<6} {kind:<8} {size:>14,}")
    click.echo(
        f"{path}: {plan.total_bytes:,} bytes ({format_size(plan.total_bytes)}) as {prepared.request.target},"
        f" from {format_size(plan.source_bytes)}; nothing was written"
    )


def _planned(tensor: PlannedMatrix) -> dict[str, Any]:
    """A tensor of the plan as scripts read it, with what holds it in the file."""
    kind = "+".join(codec.name for codec in tensor.target.codecs) if tensor.target else "F32"
    return {
        "name": tensor.name,
        "shape": list(tensor.rows.shape),
        "source_type": tensor.rows.dtype,
        "type": kind,
        "bytes": sum(info.nbytes for info in tensor.components),
        "components": _components(tensor.components),
    }


def _components(infos: Iterable[TensorInfo]) -> list[dict[str, Any]]:
    return [
        {"name": info.name, "shape": list(info.shape), "type": info.type.name, "bytes": info.nbytes} for info in infos
    ]


def _facts(prepared: PreparedVariant, size: int, seconds: float) -> dict[str, Any]:
    return {
        "output": str(prepared.path),
        "bytes": size,
        "seconds": round(seconds, 3),
        "target": prepared.request.target,
        "source_bytes": prepared.plan.source_bytes,
    }


def _report(
    prepared: PreparedVariant,
    written: tuple[int, tuple[CodedReport, ...]],
    seconds: float,
    more: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    size, reports = written
    for limit in prepared.mapped.notes:
        note(limit)
    if as_json:
        rows = [_json(report) for report in reports]
        print_json({**_facts(prepared, size, seconds), "tensors": rows, **more})
        return
    _print_stages(reports)
    note(f"{prepared.path}: {format_size(size)} as {prepared.request.target}, in {format_duration(seconds)}")


def _json(report: CodedReport) -> dict[str, Any]:
    return {
        "name": report.name,
        "shape": list(report.shape),
        "source_type": report.source_type,
        "type": report.type,
        "native": report.native.name,
        "bytes": report.bytes,
        "components": _components(report.components),
        "error": report.error,
        "stages": [
            {
                "codec": stage.codec,
                "bits_per_weight": stage.bits_per_weight,
                "error_before": stage.error_before,
                "error": stage.error,
                "kept": stage.kept,
            }
            for stage in report.stages
        ],
    }


def _print_stages(reports: tuple[CodedReport, ...]) -> None:
    """One line for each stage over all matrices (means by weights), and one for each stage that did harm."""
    coded = [report for report in reports if report.stages]
    weights = sum(prod(report.shape) for report in coded)
    for number in range(max((len(report.stages) for report in coded), default=0)):
        staged = [(report.stages[number], prod(report.shape)) for report in coded if number < len(report.stages)]
        bits = sum(stage.bits_per_weight * count for stage, count in staged if stage.kept) / weights
        error = sum(stage.error * count for stage, count in staged) / sum(count for _stage, count in staged)
        note(f"stage {number + 1}: {staged[0][0].codec}: {bits:.3f} bits a weight, relative squared error {error:.3e}")
    for report in coded:
        for number, stage in enumerate(report.stages):
            if number and stage.harmful:
                what = "kept" if stage.kept else "dropped"
                note(
                    f"{report.name}: stage {number + 1} ({stage.codec}) does harm:"
                    f" {stage.error_before:.3e} → {stage.error:.3e}, {what}"
                )
