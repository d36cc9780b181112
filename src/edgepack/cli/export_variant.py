"""`edgepack export --target edge-…`: a checkpoint becomes a GGUF of the variant; `pipeline_variant` does the work."""

from __future__ import annotations

import time
from math import prod
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import note, print_json, terminal_progress
from edgepack.quantities import format_duration, format_size

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.export.variant import CodedReport, VariantPlan


def export_variant(model: Path, target: str, *, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Code MODEL's matrices and say what each stage of each codec gave.

    Args:
        model: a Hugging Face folder or a GGUF.
        target: such as `edge-seedlm4`.
        dry_run: only say which matrix would get which codec.
        as_json: print one JSON object.
        options: the other fields of `VariantRequest`.
    """
    from edgepack.pipeline_variant import VariantRequest, prepare_variant, write_prepared

    started = time.monotonic()
    prepared = prepare_variant(VariantRequest(model, target, **options))
    if dry_run:
        _report_plan(prepared.plan, prepared.path, target, as_json=as_json)
        return
    size, reports = write_prepared(prepared, terminal_progress)
    seconds = time.monotonic() - started
    if as_json:
        result = {"output": str(prepared.path), "bytes": size, "seconds": round(seconds, 3), "target": target}
        print_json({**result, "tensors": [_json(report) for report in reports]})
        return
    _print_stages(reports)
    note(f"{prepared.path}: {format_size(size)} as {target}, in {format_duration(seconds)}")


def _report_plan(plan: VariantPlan, path: Path, target: str, *, as_json: bool) -> None:
    rows = [
        {
            "name": tensor.name,
            "shape": list(tensor.rows.shape),
            "source_type": tensor.rows.dtype,
            "type": tensor.target.name if tensor.target else "F32",
        }
        for tensor in plan.tensors
    ]
    if as_json:
        print_json({"output": str(path), "target": target, "tensors": rows})
        return
    for row in rows:
        click.echo(f"{row['name']:<36} {row['shape']!s:<16} {row['source_type']:<6} {row['type']}")
    click.echo("sizes are known once matrices are coded; nothing was written")


def _json(report: CodedReport) -> dict[str, Any]:
    return {
        "name": report.name,
        "shape": list(report.shape),
        "source_type": report.source_type,
        "type": report.type,
        "native": report.native.name,
        "bytes": report.bytes,
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
