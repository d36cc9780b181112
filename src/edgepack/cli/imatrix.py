"""`edgepack imatrix`: importance matrices are collected, merged and looked at; the work is `edgepack.imatrix`'s."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import force_option, json_option, note, print_json, say, terminal_progress
from edgepack.cli.place import Place
from edgepack.cli.scoring_options import cluster_option, gpu_option
from edgepack.quantities import format_duration, format_size

if TYPE_CHECKING:
    from edgepack.quant.calibration.importance import ImportanceMatrix

_PATH = click.Path(path_type=Path)


@click.command("imatrix", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=Place(), required=False)
@click.option("--text", type=_PATH, help="UTF-8 text to run through MODEL.")
@click.option("--merge", "merged", type=_PATH, multiple=True, metavar="FILE", help="Add another matrix; repeatable.")
@click.option("-o", "--output", type=_PATH, help="Default: imatrix.gguf; a name in .dat takes the older form.")
@click.option(
    "--ctx",
    default=512,
    show_default=True,
    type=click.IntRange(16),
    help="Tokens in a piece; no more than MODEL knows.",
)
@click.option("--chunks", type=click.IntRange(1), help="At most this many pieces.")
@click.option("--include-head", is_flag=True, help="Watch output.weight too.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of the same model and text.")
@click.option("--show", is_flag=True, help="Print statistics of every tensor.")
@click.option("--pre", metavar="NAME", help="The pre-tokenizer's name, where its structure is not known.")
@click.option("--threads", type=click.IntRange(1), help="Default: all processors.")
@gpu_option
@cluster_option
@force_option
@json_option
def command(
    model: Path | str | None,
    text: Path | None,
    merged: tuple[Path, ...],
    output: Path | None,
    ctx: int,
    chunks: int | None,
    include_head: bool,
    resume: bool,
    show: bool,
    pre: str | None,
    threads: int | None,
    n_gpu_layers: int,
    cluster: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Collect an importance matrix of MODEL over a text, and merge others in.

    MODEL is a Hugging Face folder, the URL of one, or a GGUF.

    Without MODEL, `edgepack imatrix --merge a.gguf --merge b.gguf -o both.gguf` adds matrices up, and
    `edgepack imatrix --merge a.gguf --show` looks at one.
    """
    from edgepack.api.importance import DEFAULT_NAME, imatrix

    target = output or (None if model is None and show else Path(DEFAULT_NAME))
    result = imatrix(
        model, text, target, merged=merged, ctx=ctx, chunks=chunks, include_head=include_head, resume=resume,
        force=force, pre=pre, threads=threads, n_gpu_layers=n_gpu_layers, cluster=cluster,
        progress=terminal_progress, note=note,
    )  # fmt: skip
    if as_json:
        print_json(result.json())
        return
    if show:
        _print_statistics(result.matrix)
    if result.output is not None:
        note(
            f"{result.output}: {format_size(result.bytes)}, {len(result.matrix.entries)} tensors over "
            f"{result.tokens:,} tokens, in {format_duration(result.seconds)}"
        )


def _print_statistics(matrix: ImportanceMatrix) -> None:
    """One line a tensor on stdout, the largest energy first within a kind."""
    from edgepack.quant.calibration.importance import statistics

    found = statistics(matrix)
    width = max(len(entry.name) for entry in found)
    say(
        f"{'tensor':<{width}}  {'sum x²':>12} {'mean':>10} {'max':>10} {'active':>7} {'even':>6} {'>1σ':>6} {'like':>6}"
    )
    for entry in found:
        like = "" if entry.likeness is None else f"{entry.likeness:.3f}"
        say(
            f"{entry.name:<{width}}  {entry.total:>12.4f} {entry.mean:>10.4f} {entry.largest:>10.4f}"
            f" {entry.active:>7.1%} {entry.evenness:>6.3f} {entry.outliers:>6.1%} {like:>6}"
        )
    say("even: entropy of the channels' energies over the most it could be; like: cosine with the block before")
