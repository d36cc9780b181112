"""`edgepack export`: a checkpoint becomes a GGUF. Planning and writing are left to `edgepack.export`."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import SIZE, json_option, note, print_json, terminal_progress
from edgepack.errors import UsageError
from edgepack.quantities import format_duration, format_size

if TYPE_CHECKING:
    from edgepack.export.mapped_model import MappedModel
    from edgepack.export.plan import ExportPlan
    from edgepack.pipeline_importance import ImportanceRun
    from edgepack.quant.importance import ImportanceMatrix
    from edgepack.quant.type_choice import Overrides


@click.command("export", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--target",
    required=True,
    metavar="T",
    help="gguf-q5km, gguf-f16 …; llama.cpp's spellings; edge-seedlm4, edge-vptq3 …",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: by the GGUF naming convention, here.")
@click.option("--pre", metavar="NAME", help="The pre-tokenizer's name, where its structure is not known.")
@click.option("--adapter", type=click.Path(path_type=Path), metavar="DIR", help="A PEFT LoRA for MODEL.")
@click.option("--adapter-mode", type=click.Choice(["merge", "separate"]), default="merge", show_default=True)
@click.option("--allow-requantize", is_flag=True, help="Quantise a GGUF's quantised tensors again.")
@click.option("--imatrix", type=click.Path(path_type=Path), metavar="FILE", help="An importance matrix of MODEL.")
@click.option("--calibration", type=click.Path(path_type=Path), metavar="TEXT", help="Collect one over this text.")
@click.option("--tensor-type", "tensor_types", multiple=True, metavar="REGEX=TYPE", help="Type of matching tensors.")
@click.option("--output-type", metavar="TYPE", help="Type of output.weight (and of tied embeddings).")
@click.option("--embedding-type", metavar="TYPE", help="Type of token_embd.weight.")
@click.option("--pure", is_flag=True, help="Every matrix gets the target's own type: no mixture.")
@click.option(
    "--tensor-codec",
    "tensor_codecs",
    multiple=True,
    metavar="REGEX=CODEC",
    help="For edge targets: codec of matching tensors, such as 'attn_.*=vptq3'.",
)
@click.option("--skip-harmful", is_flag=True, help="For edge targets: drop a chain's stages that do not help.")
@click.option("--dry-run", is_flag=True, help="Print the plan, exact to the byte; write nothing.")
@click.option("--shard-size", type=SIZE, help="Split into files of at most this size, as gguf-split does.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted export of the same plan.")
@click.option("--threads", type=click.IntRange(1), help="Default: all processors.")
@json_option
def command(
    model: Path,
    target: str,
    output: Path | None,
    pre: str | None,
    adapter: Path | None,
    adapter_mode: str,
    allow_requantize: bool,
    imatrix: Path | None,
    calibration: Path | None,
    tensor_types: tuple[str, ...],
    output_type: str | None,
    embedding_type: str | None,
    pure: bool,
    tensor_codecs: tuple[str, ...],
    skip_harmful: bool,
    dry_run: bool,
    shard_size: int | None,
    resume: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Turn MODEL, a Hugging Face folder or a GGUF, into a GGUF in one pass."""
    from edgepack.atomic_file import check_output
    from edgepack.export.gguf_file import write_shards
    from edgepack.export.mapped_model import open_model
    from edgepack.export.naming import file_name
    from edgepack.export.plan import PlanOptions, plan_export, split_plan
    from edgepack.pipeline_importance import ImportanceRun
    from edgepack.quant.importance_file import importance_metadata
    from edgepack.quant.targets import find_target

    started = time.monotonic()
    if target.startswith("edge-"):
        from edgepack.cli.export_variant import export_variant

        export_variant(
            model, target, output, pre=pre, tensor_codecs=tensor_codecs, skip_harmful=skip_harmful,
            dry_run=dry_run, threads=threads, as_json=as_json,
        )  # fmt: skip
        return
    if tensor_codecs or skip_harmful:
        raise UsageError(f"--tensor-codec and --skip-harmful need an edge target, got '{target}'")
    chosen = find_target(target)
    overrides = _overrides(tensor_types, output_type, embedding_type, pure)
    merged = adapter if adapter_mode == "merge" else None
    mapped = open_model(model, pre=pre, adapter=merged, allow_requantize=allow_requantize)
    path = output or Path(file_name(mapped.metadata, chosen.label))
    check_output(path, None)
    run = None if calibration is None else ImportanceRun(model, calibration, path, pre=pre, adapter=merged)
    matrix = _importance(imatrix, run, dry_run=dry_run)
    importance = None if matrix is None else matrix.weights({name: rows.shape for name, rows in mapped.tensors.items()})
    plan = plan_export(mapped, chosen, PlanOptions(overrides, importance))
    if matrix is not None:
        plan = replace(plan, metadata={**plan.metadata, **importance_metadata(matrix, imatrix or calibration)})
    check_output(path, None if dry_run else plan.total_bytes)
    shards = split_plan(plan, shard_size) if shard_size else [plan]
    if not dry_run:
        write_shards(shards, path, threads=threads, progress=terminal_progress, resume=resume)
    beside = None
    if adapter is not None and adapter_mode == "separate":
        beside = _write_adapter(model, adapter, mapped, path, dry_run=dry_run)
    seconds = time.monotonic() - started
    if as_json:
        print_json(_result(plan, path, seconds) | ({"adapter": str(beside)} if beside else {}))
    elif dry_run:
        _print_plan(plan, path)
    else:
        note(
            f"{path}: {format_size(plan.total_bytes)} as {chosen.label}, from {format_size(plan.source_bytes)},"
            f" in {format_duration(seconds)}"
        )


def _importance(imatrix: Path | None, run: ImportanceRun | None, *, dry_run: bool) -> ImportanceMatrix | None:
    """The importance matrix that the options ask for, read or collected."""
    if imatrix is not None and run is not None:
        raise UsageError("--imatrix and --calibration: expected one of them, got both")
    if imatrix is not None:
        from edgepack.quant.importance_file import read_importance

        return read_importance(imatrix)
    if run is None:
        return None
    if dry_run:
        raise UsageError("--calibration: collecting is work; with --dry-run give --imatrix FILE")
    return run.collect(resume=True, progress=terminal_progress)


def _write_adapter(model: Path, adapter: Path, mapped: MappedModel, path: Path, *, dry_run: bool) -> Path:
    """Write the adapter as a GGUF beside `path`; with `dry_run` only check that it can be."""
    from edgepack.export.adapter import read_adapter
    from edgepack.export.adapter_gguf import adapter_factors, write_adapter
    from edgepack.export.checkpoint import open_checkpoint

    if model.is_file():
        raise UsageError(f"--adapter: expected a Hugging Face folder, got '{model}'")
    update = read_adapter(adapter, open_checkpoint(model).tensors)
    beside = path.with_name(f"{path.stem}-lora.gguf")
    if dry_run:
        adapter_factors(update, mapped)
    else:
        size = write_adapter(update, mapped, beside)
        note(f"{beside}: {format_size(size)}, the adapter for {path.name}")
    return beside


def _overrides(
    tensor_types: tuple[str, ...], output_type: str | None, embedding_type: str | None, pure: bool
) -> Overrides:
    """What the options say; raises UsageError for a type or expression that is none."""
    from edgepack.quant.targets import find_type
    from edgepack.quant.type_choice import Overrides

    patterns = []
    for text in tensor_types:
        pattern, equals, kind = text.rpartition("=")
        if not equals:
            raise UsageError(f"--tensor-type '{text}': expected REGEX=TYPE, such as ffn_down=q6_k")
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"--tensor-type '{text}': not a regular expression: {error}") from error
        patterns.append((pattern, find_type(kind)))
    return Overrides(
        tuple(patterns),
        output=find_type(output_type) if output_type else None,
        embedding=find_type(embedding_type) if embedding_type else None,
        pure=pure,
    )


def _result(plan: ExportPlan, path: Path, seconds: float) -> dict[str, Any]:
    return {
        "output": str(path),
        "bytes": plan.total_bytes,
        "seconds": round(seconds, 3),
        "target": plan.target.name,
        "source_bytes": plan.source_bytes,
        "tensors": [
            {
                "name": tensor.info.name,
                "shape": list(tensor.info.shape),
                "source_type": tensor.rows.dtype,
                "type": tensor.info.type.name,
                "bytes": tensor.info.nbytes,
            }
            for tensor in plan.tensors
        ],
    }


def _print_plan(plan: ExportPlan, path: Path) -> None:
    """The plan as a table on stdout."""
    width = max(len(tensor.info.name) for tensor in plan.tensors)
    click.echo(f"{'tensor':<{width}}  {'shape':<18} {'from':<6} {'to':<8} {'bytes':>14}")
    for tensor in plan.tensors:
        shape = " × ".join(map(str, tensor.info.shape))
        kind = tensor.info.type.name
        click.echo(
            f"{tensor.info.name:<{width}}  {shape:<18} {tensor.rows.dtype:<6} {kind:<8} {tensor.info.nbytes:>14,}"
        )
    click.echo(
        f"{path}: {plan.total_bytes:,} bytes ({format_size(plan.total_bytes)}) as {plan.target.label},"
        f" from {format_size(plan.source_bytes)}; nothing was written"
    )
