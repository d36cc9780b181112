"""`edgepack prune-grid`: fidelity and archive size of a model at several sparsities, and which to take."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import json_option, note, print_json, say, terminal_progress
from edgepack.cli.place import Place
from edgepack.cli.scoring_options import blockwise_option, chunks_option, ctx_option, text_option, threads_option
from edgepack.errors import CheckFailedError, UsageError
from edgepack.quant.passes.prune_pass import METHODS

if TYPE_CHECKING:
    from edgepack.pipeline.prune_grid import GridRequest, PruneGrid
    from edgepack.quant.passes.prune.grid import Level

_PATH = click.Path(path_type=Path)


@click.command("prune-grid")
@click.argument("model", type=Place())
@click.option("--sparsity", required=True, metavar="S,S,…", help="Shares of weights that go, such as 0.6,0.65,0.7.")
@click.option("--method", type=click.Choice(METHODS), default="wanda", show_default=True, help="Which weights go.")
@click.option("--target", default="gguf-q8", show_default=True, metavar="T", help="Type of the files.")
@click.option("--calibration", type=_PATH, metavar="TEXT", help="What enters the layers; default own samples of MODEL.")
@text_option
@ctx_option
@chunks_option
@blockwise_option
@threads_option
@click.option("--device", default="cpu", show_default=True, metavar="D", help="Torch device of the pass.")
@click.option(
    "--recover",
    type=click.IntRange(1),
    metavar="N",
    help="Measure each sparsity again with N steps of learning while it is pruned.",
)
@click.option("--every", type=click.IntRange(1), metavar="N", help="Steps between two masks; default 100.")
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Sequences a step; default 8.")
@click.option("--rate", type=float, metavar="R", help="Learning rate; default 0.0001.")
@click.option("--max-memory", metavar="SIZE", help="Memory that learning may take, such as 16GB.")
@click.option("--min-agreement", type=click.FloatRange(0, 1), default=0.7, show_default=True,
              help="Least share of first choices equal to MODEL's.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print what would be measured and about how large the GGUFs are.")
@json_option
def command(
    model: Path | str, sparsity: str, method: str, target: str, calibration: Path | None, text_path: Path | None,
    ctx: int | None, max_chunks: int | None, blockwise: bool | None, threads: int, device: str,
    recover: int | None, every: int | None, batch: int | None, rate: float | None, max_memory: str | None,
    min_agreement: float, dry_run: bool, as_json: bool,
) -> int:  # fmt: skip
    """Prune MODEL, a folder, its URL or a GGUF, to each sparsity; print perplexity, agreement and archive size of each.

    With --recover N each sparsity is measured twice: in one shot, and with masks that grow along a cubic schedule while
    the model learns from its own dense answers on --calibration.

    Picked is the smallest archive whose first choices equal MODEL's in --min-agreement of all tokens or more; of
    equal archives the one that agrees more. Exits with 1 when no level agrees that much. No file is kept: the line
    that is printed at the end makes the one that was picked.
    """
    from edgepack.api.measured_inputs import check_text
    from edgepack.edge.fidelity.scoring import ScoringOptions
    from edgepack.pipeline.located import opened_place
    from edgepack.pipeline.prune_grid import GridRequest, PruneGrid, parse_sparsities
    from edgepack.quant.passes.prune.grid import choose_level, measure_levels, ordered

    scoring = ScoringOptions(ctx=ctx, max_chunks=max_chunks, threads=threads, blockwise=blockwise)
    given = {"steps": recover, "every": every, "batch": batch, "rate": rate, "max_memory": max_memory}
    recovery = {key: value for key, value in given.items() if value is not None}
    if recovery and recover is None:
        raise UsageError(f"--{next(iter(recovery)).replace('_', '-')}: belongs to --recover, which is not given")
    check_text(model, text_path, "MODEL")
    levels = ordered(parse_sparsities(sparsity))
    started = time.monotonic()
    with ExitStack() as opened:
        place, located = opened.enter_context(opened_place(model, None))
        request = GridRequest(
            place, target, method, calibration, text_path, scoring, device, recovery, terminal_progress, located
        )
        grid = opened.enter_context(PruneGrid(request))
        if dry_run:
            return _plan(grid, request, levels, str(model), as_json=as_json)
        if not as_json:
            recovers = f" {'steps':>6}" if recovery else ""
            say(f"{'sparsity':>8}{recovers} {'perplexity':>11} {'agreement':>10} {'archive bytes':>14}")

        def measured(level: float, steps: int) -> Level:
            found = grid.measure(level, steps)
            if not as_json:
                say(_line(found, with_steps=bool(recovery)))
            return found

        found = measure_levels(levels, measured, request.steps)
        origin = grid.text.origin
    for line in grid.notes:
        note(f"note: {line}")
    try:
        chosen = choose_level(found, min_agreement)
    except CheckFailedError as error:
        chosen, missed = None, str(error)
    if as_json:
        print_json({
            "model": str(model), "target": target, "method": method, "text": origin, "min_agreement": min_agreement,
            "levels": [_as_object(level) for level in found], "chosen": None if chosen is None else _as_object(chosen),
            "seconds": round(time.monotonic() - started, 3),
        })  # fmt: skip
    if chosen is None:
        note(f"FAILED {missed}")
        return CheckFailedError.exit_code
    recovered = f" with {chosen.steps} steps of recovery" if chosen.steps else ""
    note(f"picked {chosen.sparsity:g}{recovered}: the smallest archive with an agreement of {min_agreement:g} or more")
    text = "" if calibration is None else f" --calibration {calibration}"
    chosen_pass = request.pass_for(chosen.sparsity, chosen.steps)
    note(f"edgepack export {model} --target {target} --pass {chosen_pass}{text} --pack")
    return 0


def _plan(grid: PruneGrid, request: GridRequest, levels: list[float], model: str, *, as_json: bool) -> int:
    size = grid.planned_bytes()
    if as_json:
        print_json({
            "model": model, "target": request.target, "method": request.method,
            "levels": [
                {"sparsity": level, "steps": steps, "gguf_bytes": size} for level in levels for steps in request.steps
            ],
        })  # fmt: skip
        return 0
    for level in levels:
        for steps in request.steps:
            shown = request.pass_for(level, steps)
            say(f"{level:>8.4g} {shown}: a GGUF of about {size:,} bytes, packed and scored")
    return 0


def _line(level: Level, *, with_steps: bool) -> str:
    steps = f" {level.steps:>6}" if with_steps else ""
    return f"{level.sparsity:>8.4g}{steps} {level.perplexity:11.3f} {level.agreement:10.4f} {level.archive_bytes:14,}"


def _as_object(level: Level) -> dict[str, float]:
    return {
        "sparsity": level.sparsity, "perplexity": level.perplexity, "top1_agreement": level.agreement,
        "archive_bytes": level.archive_bytes, "steps": level.steps,
    }  # fmt: skip
