"""`edgepack kv`: what each type of KV cache costs a model, measured, and put into the file."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from edgepack.cli.output import force_option, json_option, note, print_json, say, terminal_progress
from edgepack.cli.place import Place
from edgepack.cli.scoring_options import gpu_option, report_option, threads_option
from edgepack.cli.trust_options import trust_options

_PATH = click.Path(path_type=Path)


def _numbers(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"expected numbers separated by commas, got '{text}'") from None


@click.command("kv")
@click.argument("model", type=Place())
@click.option("--text", type=_PATH, required=True, metavar="FILE", help="What is read: at least two chunks.")
@click.option("--ctx", type=click.IntRange(4), default=512, show_default=True,
              help="Tokens of a chunk; its second half is scored.")  # fmt: skip
@click.option("--chunks", type=click.IntRange(1), default=8, show_default=True, help="At most, from the beginning.")
@click.option("--types", metavar="K[/V],…",
              help="Caches to measure, such as q8_0,q8_0/q4_0.  [default: eleven of llama.cpp's]")  # fmt: skip
@click.option("--dims", default="", callback=_numbers, metavar="N,…",
              help="What caches of so many dimensions would lose, all heads together.")  # fmt: skip
@click.option("--max-kl", type=click.FloatRange(min=0, min_open=True), default=0.01, show_default=True,
              help="Nats a token that a device may lose by its cache.")  # fmt: skip
@click.option("--original", type=Place(), metavar="MODEL", help="The checkpoint that a file was made of, or its URL.")
@click.option("--spectra/--no-spectra", default=None, help="Of K, V and Q.  [default: where torch can run MODEL]")
@click.option("-o", "--output", type=_PATH, help="An archive or a GGUF with the table.  [default: measure alone]")
@threads_option
@gpu_option
@click.option("--device", default="cpu", show_default=True, metavar="D", help="Torch's, of spectra.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and about how long; evaluate nothing.")
@report_option
@trust_options
@force_option
@json_option
def command(
    model: Path | str,
    text: Path,
    output: Path | None,
    report: Path | None,
    as_json: bool,
    types: str | None,
    **values: Any,
) -> None:
    """Read TEXT with MODEL (a GGUF, an archive, a checkpoint's folder) and every type of KV cache.

    Each is held against the f16 cache of the same file: bytes a token, KL divergence, equal first choices. Of a model
    that transformers can run, spectra of keys, values and queries say how few dimensions they use. An output carries
    the table: where f16 does not fit, fit, run and serve take the smallest cache that costs little enough. What was
    interrupted goes on where it was, when an output or a report is named. Sign an archive after this.
    """
    from edgepack.api.caches import kv
    from edgepack.api.places import files_of
    from edgepack.edge.kv.sizes import USUAL
    from edgepack.files.claim import claimed_output
    from edgepack.files.output import atomic_output
    from edgepack.pipeline.kv.results import KvForecast

    named = USUAL if types is None else tuple(name.strip() for name in types.split(",") if name.strip())
    place = output or report
    work = None if place is None or values["dry_run"] else place.with_name(f".{place.name}.run")
    inputs = files_of(model, text, values["original"], output)
    with ExitStack() as claims:
        if report is not None and not values["dry_run"]:
            claims.enter_context(claimed_output(report, inputs=inputs, force=values["force"]))
        found = kv(model, text, output, types=named, work=work, progress=terminal_progress, note=note, **values)
        if report is not None and not isinstance(found, KvForecast):
            with atomic_output(report) as stream:
                stream.write(found.html().encode())
    if work is not None:
        shutil.rmtree(work, ignore_errors=True)
    if as_json:
        print_json(found.json())
    else:
        say("\n".join(found.lines()))
        if output is not None and not isinstance(found, KvForecast):
            note(f"{output}: carries the table")
