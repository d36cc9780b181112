"""`edgepack frontier`: one table a model: divergence against shipped bytes and against memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import json_option, note, print_json, say, terminal_progress
from edgepack.cli.place import Place
from edgepack.cli.scoring_options import (
    blockwise_option,
    chunks_option,
    cluster_option,
    ctx_option,
    gpu_option,
    threads_option,
)

if TYPE_CHECKING:
    from edgepack.pipeline.frontier.forecast import Forecast

_PATH = click.Path(path_type=Path)


@click.command("frontier")
@click.argument("model", type=Place())
@click.option("--calibration", type=_PATH, required=True, metavar="TEXT", help="What files are calibrated with.")
@click.option("--text", "texts", type=_PATH, required=True, multiple=True, metavar="TEXT",
              help="What is scored; repeatable. None of it should be in the calibration text.")  # fmt: skip
@click.option("-o", "--output", type=_PATH, required=True, metavar="FOLDER", help="Not there yet, or empty.")
@click.option("--points", default="", metavar="REGEX,…",
              help="Only these points, such as importance,wire-q8/Q4_K_M, and what they stand on.")  # fmt: skip
@click.option("--device", "devices", multiple=True, metavar="D",
              help="Profiles whose budgets are told; default gtx-1660, rtx-3060, laptop-8gb.")  # fmt: skip
@click.option("--goal", type=click.FloatRange(0, 1, min_open=True), default=0.95, show_default=True,
              help="Share of first choices that a file should keep.")  # fmt: skip
@click.option("--sequences", type=click.IntRange(1), default=64, show_default=True, metavar="N",
              help="Pieces of the calibration text, for every method.")  # fmt: skip
@click.option("--length", type=click.IntRange(1), metavar="N", help="Tokens of a piece.")
@ctx_option
@chunks_option
@blockwise_option
@threads_option
@gpu_option
@click.option("--torch-device", default="cpu", show_default=True, metavar="D", help="Of calibration.")
@cluster_option
@click.option("--keep-files", is_flag=True, help="Keep what was made, in FOLDER/files.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run, or add points to a finished one.")
@click.option("--dry-run", is_flag=True, help="Measure how long it would take on this machine; write nothing.")
@json_option
def command(
    model: Path | str, calibration: Path, texts: tuple[Path, ...], output: Path, points: str, devices: tuple[str, ...],
    goal: float, sequences: int, length: int | None, ctx: int | None, max_chunks: int | None,
    blockwise: bool | None, threads: int, n_gpu_layers: int, torch_device: str, cluster: str | None, keep_files: bool,
    resume: bool, dry_run: bool, as_json: bool,
) -> int:  # fmt: skip
    """Make MODEL (a folder, its URL or a GGUF) in llama.cpp's types and in edgepack's, and measure every file.

    FOLDER gets frontier.json, frontier.svg and frontier.html: bytes as shipped and in memory, KL divergence, equal
    first choices and perplexity on every text, what fits each device, and the smallest file that keeps the goal. How
    long it takes is told first. A run that was stopped goes on with --resume: what is done is not done again.
    """
    from edgepack.api.frontier import frontier
    from edgepack.edge.fidelity.scoring import ScoringOptions
    from edgepack.pipeline.frontier.forecast import Forecast
    from edgepack.pipeline.frontier.report import lines
    from edgepack.pipeline.frontier.request import DEVICES

    found = frontier(
        model, calibration, texts, output, points=points, devices=devices or DEVICES, goal=goal, sequences=sequences,
        length=length, device=torch_device, cluster=cluster, keep_files=keep_files, resume=resume,
        dry_run=dry_run,
        scoring=ScoringOptions(ctx=ctx, max_chunks=max_chunks, threads=threads, blockwise=blockwise,
                               n_gpu_layers=n_gpu_layers),
        progress=terminal_progress, tell=note,
    )  # fmt: skip
    if as_json:
        print_json(found.as_json())
    elif isinstance(found, Forecast):
        say("\n".join(_plan(found)))
    else:
        say("\n".join(lines(found)))
        note(f"{output}: frontier.html, frontier.svg, frontier.json")
    return 0


def _plan(found: Forecast) -> list[str]:
    from edgepack.pipeline.frontier.telling import told_time
    from edgepack.quantities import format_size

    told = [f"{told_time(seconds):>8}  {name}" for name, seconds in {**found.once, **found.points}.items()]
    disk = f"{format_size(found.disk_bytes)} of disk for the original's predictions"
    return [
        *told,
        f"{told_time(found.seconds):>8}  in all, as measured here in {told_time(found.measured_seconds)}; {disk}",
    ]
