"""`edgepack checkpoint`: a GGUF becomes a folder that transformers loads; the work is `edgepack.checkpoint`'s."""

from __future__ import annotations

from pathlib import Path

import click

from edgepack.cli.output import json_option, note, print_json, terminal_progress
from edgepack.quantities import format_duration, format_size


@click.command("checkpoint", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The folder, not there yet.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Of the weights; auto keeps every value: quantised ones become float32.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be written; write nothing.")
@json_option
def command(model: Path, output: Path, dtype: str, dry_run: bool, as_json: bool) -> None:
    """Write MODEL, a GGUF, as the Hugging Face folder that it could have been made of."""
    from edgepack.api.checkpoint import checkpoint

    found = checkpoint(model, output, dtype=dtype, dry_run=dry_run, progress=terminal_progress)
    for line in found.notes:
        note(line)
    if as_json:
        print_json({
            "output": str(found.output), "bytes": found.bytes, "seconds": round(found.seconds, 3),
            "class": found.model_class, "dtype": found.dtype, "notes": list(found.notes),
            "tensors": [{"name": name, "type": kind, "shape": list(shape)} for name, kind, shape in found.tensors],
        })  # fmt: skip
        return
    done = "would take" if dry_run else "takes"
    note(
        f"{found.output}: {found.model_class}, {len(found.tensors)} tensors, {done} {format_size(found.bytes)} in"
        f" {found.dtype}, in {format_duration(found.seconds)}"
    )
