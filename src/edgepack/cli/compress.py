"""`edgepack compress`: a recipe from passes to certificate in one run; the work is `edgepack.compress`'s."""

from __future__ import annotations

from pathlib import Path

import click

from edgepack.cli.output import force_option, json_option, note, print_json, terminal_progress
from edgepack.cli.place import Place
from edgepack.quantities import format_size

_PATH = click.Path(path_type=Path)


@click.command("compress", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=Place())
@click.argument("recipe", type=_PATH)
@click.option("-o", "--output", type=_PATH, required=True, metavar="FOLDER", help="For files and what stages keep.")
@click.option("--metrics", type=_PATH, metavar="FILE", help="Written after every stage in Prometheus' text format.")
@click.option("--log", type=_PATH, metavar="FILE", help="A line an event is added to it.")
@click.option("--device", default="cpu", show_default=True, metavar="D", help="Torch device of passes.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Default: all processors.")
@click.option("--dry-run", is_flag=True, help="Check the recipe and plan the file; write nothing.")
@force_option
@json_option
def command(
    model: Path | str, recipe: Path, output: Path, metrics: Path | None, log: Path | None, device: str,
    threads: int | None, dry_run: bool, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run RECIPE, TOML or JSON, on MODEL: passes, export, pack, validate, certify.

    Stages that an earlier run in FOLDER did with the same inputs are skipped. Constraints are checked after each
    stage; a missed one exits with 1 and its figures.
    """
    from edgepack.api.compress import compress

    result = compress(
        model, recipe, output, device=device, threads=threads, metrics=metrics, log=log, dry_run=dry_run, force=force,
        progress=terminal_progress, note=note,
    )  # fmt: skip
    if as_json:
        print_json(result.json())
    elif dry_run:
        done = result.done
        note(f"{done.output}: {format_size(done.bytes)}, ratio {done.ratio:.2f} before packing; nothing was written")
