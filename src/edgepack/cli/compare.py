"""`edgepack compare`: several files held against one original, size against divergence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import json_option, note, print_json, terminal_progress
from edgepack.cli.scoring_options import gate_options, report_option, scoring_options
from edgepack.cli.validate import write_report
from edgepack.errors import CheckFailedError

if TYPE_CHECKING:
    from edgepack.edge.fidelity.run import FidelityRun
    from edgepack.edge.fidelity.validate import Gates

_PATH = click.Path(path_type=Path)


@click.command("compare")
@click.argument("candidates", type=_PATH, nargs=-1, required=True)
@click.option("--reference", type=_PATH, required=True, help="The original: a Hugging Face folder or a GGUF.")
@scoring_options
@gate_options
@report_option
@json_option
def command(
    candidates: tuple[Path, ...],
    reference: Path,
    text_path: Path | None,
    min_agreement: float | None,
    max_kl: float | None,
    max_perplexity_ratio: float | None,
    report: Path | None,
    as_json: bool,
    **scoring: Any,
) -> int:
    """Hold CANDIDATES against their original in one pass and say which of them no other one beats.

    With gates, exits with 1 when none of the files clears them.
    """
    from edgepack.edge.fidelity.validate import Gates
    from edgepack.pipeline.fidelity import ScoringOptions, run_validation

    gates = Gates(min_agreement, max_kl, max_perplexity_ratio)
    run = run_validation(reference, candidates, text_path, ScoringOptions(**scoring), terminal_progress)
    if report is not None:
        write_report(run, gates, reference, report)
    if as_json:
        print_json(comparison_json(run, gates))
    else:
        _print_table(run, gates)
    if any(candidate.validation.passed(gates) for candidate in run.candidates):
        return 0
    note("FAILED: no file clears the gates")
    return CheckFailedError.exit_code


def comparison_json(run: FidelityRun, gates: Gates) -> dict[str, Any]:
    """The one object of `--json`."""
    from edgepack.edge.fidelity.outcome import as_json, floor_json, greedy_json
    from edgepack.edge.fidelity.run import pareto_front

    front = pareto_front(
        [candidate.bytes for candidate in run.candidates],
        [candidate.validation.statistics.divergence.mean for candidate in run.candidates],
    )
    return {
        "reference": run.reference,
        "text": {"origin": run.text.origin, "sha256": run.text.sha256},
        "noise_floor": floor_json(run),
        "candidates": [
            {"path": str(candidate.path), "bytes": candidate.bytes, "on_pareto_front": marked,
             "greedy": greedy_json(candidate.greedy),
             **as_json(candidate.validation, gates, run.chunking)}
            for candidate, marked in zip(run.candidates, front, strict=True)
        ],
    }  # fmt: skip


def _print_table(run: FidelityRun, gates: Gates) -> None:
    from edgepack.edge.fidelity.outcome import table_rows

    tokens = run.candidates[0].validation.statistics.tokens
    click.echo(f"against {run.reference}, {tokens} tokens of {run.text.origin} in chunks of {run.chunking.ctx}\n")
    rows = table_rows(run, gates)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *others = (text.rjust(width) for text, width in zip(row, widths, strict=True))
        click.echo("  ".join([first.strip().ljust(widths[0]), *others]).rstrip())
    click.echo("\n● no other file here is both smaller and more faithful")
