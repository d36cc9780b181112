"""`edgepack export`: a checkpoint becomes a GGUF, or an archive of one. The work is `pipeline.export`'s."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.export_options import (
    gate_options,
    output_options,
    parse_overrides,
    pass_options,
    source_options,
    type_options,
)
from edgepack.cli.export_wire import WIRE_OPTIONS, export_wire, wire_options
from edgepack.cli.output import json_option, note, print_json, terminal_progress
from edgepack.errors import UsageError
from edgepack.quantities import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.export.plan import ExportPlan
    from edgepack.pipeline.export import ExportRequest, PreparedExport


@click.command("export", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", metavar="T", help="gguf-q5km, gguf-f16 …; llama.cpp's spellings; edge-seedlm4 …; wire")
@source_options
@type_options
@pass_options
@gate_options
@output_options
@wire_options
@json_option
def command(model: Path, target: str | None, *, as_json: bool, **options: Any) -> int:
    """Turn MODEL, a Hugging Face folder or a GGUF, into a GGUF in one pass.

    With --min-agreement or --max-kl and no --target, the ladder of types is tried from small to large. Exits with
    1 when a gate is missed; a file that was asked for by its target is kept all the same.
    """
    if target == "wire":
        export_wire(model, as_json=as_json, **options)
        return 0
    for name in WIRE_OPTIONS:
        if options.pop(name) not in (None, False):
            raise UsageError(f"--{name.replace('_', '-')} needs --target wire, got '{target}'")
    if target is not None and target.startswith("edge-"):
        return _export_variant(model, target, as_json=as_json, **options)
    if options["recipe"] is not None or options["passes"]:
        from edgepack.cli.export_recipe import export_recipe

        return export_recipe(model, target, as_json=as_json, **options)
    for only_for_passes in ("recipe", "passes", "device"):
        del options[only_for_passes]
    if options["tensor_codecs"] or options["skip_harmful"]:
        raise UsageError(f"--tensor-codec and --skip-harmful need an edge target, got '{target}'")
    return _export_gguf(model, target, as_json=as_json, **options)


def _export_variant(model: Path, target: str, *, as_json: bool, **options: Any) -> int:
    from edgepack.cli.export_variant import TAKEN, export_variant

    left = sorted(name for name, value in options.items() if name not in TAKEN and value not in (None, False, ()))
    if left:
        option = left[0].replace("_", "-").removesuffix("s" if left[0] == "tensor_types" else "")
        raise UsageError(f"--{option}: expected a gguf target, got '{target}'")
    return export_variant(model, target, as_json=as_json, **{name: options[name] for name in TAKEN})


def _request(model: Path, target: str | None, options: Mapping[str, Any]) -> ExportRequest:
    from edgepack.pipeline.export import ExportRequest
    from edgepack.quant.types.targets import find_target

    return ExportRequest(
        model,
        find_target(target) if target else None,
        output=options["output"],
        pre=options["pre"],
        adapter=options["adapter"] if options["adapter_mode"] == "merge" else None,
        allow_requantize=options["allow_requantize"],
        overrides=parse_overrides(
            options["tensor_types"], options["output_type"], options["embedding_type"], pure=options["pure"]
        ),
        imatrix=options["imatrix"],
        calibration=options["calibration"],
        max_bytes=options["max_size"],
        shard_bytes=options["shard_size"],
        pack=options["pack"],
        resume=options["resume"],
        threads=options["threads"],
    )


def _export_gguf(model: Path, target: str | None, *, as_json: bool, dry_run: bool, **options: Any) -> int:
    from edgepack.atomic_file import check_output
    from edgepack.cli.export_adapter import write_separate_adapter
    from edgepack.cli.export_gated import export_by_gate, judge
    from edgepack.pipeline.export import prepare, write

    if dry_run and options["calibration"]:
        raise UsageError("--calibration: collecting is work; with --dry-run give --imatrix FILE")
    started = time.monotonic()
    request = _request(model, target, options)
    gated = options["min_agreement"] is not None or options["max_kl"] is not None
    if target is None and gated and not dry_run:
        prepared, verdict = export_by_gate(request, options)
        _report(prepared, [prepared.path], time.monotonic() - started, as_json=as_json, dry_run=False, more=verdict)
        return 0
    prepared = prepare(request, terminal_progress)
    check_output(prepared.path, None if dry_run else prepared.plan.total_bytes)
    plan, files = (prepared.plan, []) if dry_run else write(prepared, terminal_progress)
    prepared = replace(prepared, plan=plan)
    if options["adapter"] is not None and options["adapter_mode"] == "separate":
        files.append(
            write_separate_adapter(options["adapter"], request.model, prepared.mapped, prepared.path, dry_run=dry_run)
        )
    judged = judge(model, prepared.path, options) if (gated or options["validate"]) and not dry_run else None
    more = judged.as_json if judged else {}
    _report(prepared, files, time.monotonic() - started, as_json=as_json, dry_run=dry_run, more=more)
    return judged.report(quiet=as_json) if judged else 0


def _report(
    prepared: PreparedExport,
    files: list[Path],
    seconds: float,
    *,
    as_json: bool,
    dry_run: bool,
    more: Mapping[str, Any],
) -> None:
    plan, request = prepared.plan, prepared.request
    for limit in prepared.mapped.notes:
        note(limit)
    size = prepared.path.stat().st_size if request.pack and not dry_run else plan.total_bytes
    if as_json:
        adapter = [str(path) for path in files if path.stem.endswith("-lora")]
        print_json(_result(prepared, size, seconds) | ({"adapter": adapter[0]} if adapter else {}) | dict(more))
    elif dry_run:
        print_plan(plan, prepared.path)
    else:
        note(
            f"{prepared.path}: {format_size(size)} as {plan.target.label}, from {format_size(plan.source_bytes)},"
            f" in {format_duration(seconds)}"
        )


def _result(prepared: PreparedExport, size: int, seconds: float) -> dict[str, Any]:
    plan = prepared.plan
    return {
        "output": str(prepared.path),
        "bytes": size,
        "seconds": round(seconds, 3),
        "target": plan.target.name,
        "source_bytes": plan.source_bytes,
        "tensors": tensors_json(plan),
    }


def tensors_json(plan: ExportPlan) -> list[dict[str, Any]]:
    """Every tensor of a plan, as scripts read it."""
    return [
        {
            "name": tensor.info.name,
            "shape": list(tensor.info.shape),
            "source_type": tensor.rows.dtype,
            "type": tensor.info.type.name,
            "bytes": tensor.info.nbytes,
        }
        for tensor in plan.tensors
    ]


def print_plan(plan: ExportPlan, path: Path) -> None:
    """The plan as a table on stdout."""
    width = max(len(tensor.info.name) for tensor in plan.tensors)
    click.echo(f"{'tensor':<{width}}  {'shape':<18} {'from':<6} {'to':<8} {'bytes':>14}")
    for tensor in plan.tensors:
        info, shape = tensor.info, " × ".join(map(str, tensor.info.shape))
        click.echo(f"{info.name:<{width}}  {shape:<18} {tensor.rows.dtype:<6} {info.type.name:<8} {info.nbytes:>14,}")
    click.echo(
        f"{path}: {plan.total_bytes:,} bytes ({format_size(plan.total_bytes)}) as {plan.target.label},"
        f" from {format_size(plan.source_bytes)}; nothing was written"
    )
