"""`edgepack bench`: tokens per second as llama-bench defines them; measured by `edgepack.bench`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.model_options import open_options, opening_options
from edgepack.cli.output import json_option, note, print_json, say, terminal_progress
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from edgepack.edge.bench import BenchResult, Speed


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--repetitions", "-r", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--n-prompt", "-p", type=click.IntRange(min=1), default=512, show_default=True, help="Tokens of pp.")
@click.option("--n-gen", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens of tg.")
@click.option("--compare", is_flag=True, help="Print the previous result of this model on this device beside it.")
@opening_options
@json_option
def command(file: Path, **values: Any) -> None:
    """Time prompt processing (pp) and generation (tg) of the model in FILE, a GGUF or an archive."""
    from edgepack.api.speed import bench
    from edgepack.edge.bench import earlier_result

    opening = open_options(values)
    result = bench(
        file, repetitions=values["repetitions"], n_prompt=values["n_prompt"], n_gen=values["n_gen"],
        device=opening.device, n_gpu_layers=opening.n_gpu_layers, kv_type=opening.kv_type, threads=opening.threads,
        adapters=opening.adapters, own_adapters=opening.own_adapters, verify=opening.verify, engine=opening.engine,
        trusted=opening.trust or (), keep=True, progress=terminal_progress,
    )  # fmt: skip
    earlier = earlier_result(result) if values["compare"] else None
    if values["as_json"]:
        print_json({**asdict(result), "earlier": None if earlier is None else asdict(earlier)})
        return
    _print(result, earlier, compare=values["compare"])


def _print(result: BenchResult, earlier: BenchResult | None, *, compare: bool) -> None:
    columns = ["model", "size", "device", "threads", f"pp{result.pp.n} t/s", f"tg{result.tg.n} t/s"]
    say(f"| {' | '.join(columns)} |")
    say("|" + "---|" * len(columns))
    say(_row(result))
    if earlier is not None:
        say(_row(earlier))
        ratio = [result.pp.tokens_per_second / earlier.pp.tokens_per_second]
        ratio.append(result.tg.tokens_per_second / earlier.tg.tokens_per_second)
        say(f"| now / before | | | | {ratio[0]:.2f} | {ratio[1]:.2f} |")
    elif compare:
        note("no earlier result of this model on this device")
    note(
        f"loaded in {result.load_seconds:.2f} s, first token of a prompt of {result.pp.n} after "
        f"{result.first_token_seconds:.2f} s, peak memory {format_size(result.peak_memory_bytes)}; {result.llama_cpp}"
    )


def _row(result: BenchResult) -> str:
    cells = [result.model, format_size(result.model_bytes), result.device, str(result.threads)]
    return f"| {' | '.join([*cells, _speed(result.pp), _speed(result.tg)])} |"


def _speed(speed: Speed) -> str:
    return f"{speed.tokens_per_second:.1f} ({speed.least:.1f}–{speed.most:.1f})"
