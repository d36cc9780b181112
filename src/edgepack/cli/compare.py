"""`edgepack compare`: several files held against one original, size against divergence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import force_option, json_option, note, print_json, say, terminal_progress
from edgepack.cli.place import Place
from edgepack.cli.scoring_options import gate_options, read_scoring, report_option, scoring_options
from edgepack.cli.validate import check_page, write_page
from edgepack.errors import CheckFailedError

if TYPE_CHECKING:
    from edgepack.edge.fidelity.gates import Gates
    from edgepack.edge.fidelity.run import FidelityRun

_PATH = click.Path(path_type=Path)


@click.command("compare")
@click.argument("candidates", type=_PATH, nargs=-1, required=True)
@click.option(
    "--reference", type=Place(), required=True, help="The original: a Hugging Face folder, its URL, or a GGUF."
)
@scoring_options
@gate_options
@report_option
@force_option
@json_option
def command(
    candidates: tuple[Path, ...],
    reference: Path | str,
    text_path: Path | None,
    min_agreement: float | None,
    max_kl: float | None,
    max_perplexity_ratio: float | None,
    max_mean_error: float | None,
    max_tensor_error: float | None,
    report: Path | None,
    force: bool,
    as_json: bool,
    **scoring: Any,
) -> int:
    """Hold CANDIDATES against their original in one pass and say which of them no other one beats.

    With gates, exits with 1 when none of the files clears them.
    """
    from edgepack.api.fidelity import compare

    check_page(report, [*candidates, Path(reference), text_path], force)
    result = compare(
        candidates, reference, text=text_path, min_agreement=min_agreement, max_kl=max_kl,
        max_perplexity_ratio=max_perplexity_ratio, max_mean_error=max_mean_error, max_tensor_error=max_tensor_error,
        scoring=read_scoring(scoring), findings=report is not None, progress=terminal_progress, note=note,
    )  # fmt: skip
    if report is not None:
        write_page(result, report, force)
    if as_json:
        print_json(result.json())
    else:
        _print_table(result.run, result.gates)
    if result.passed:
        return 0
    note("FAILED: no file clears the gates")
    return CheckFailedError.exit_code


def _print_table(run: FidelityRun, gates: Gates) -> None:
    from edgepack.edge.fidelity.outcome import table_rows

    tokens = run.candidates[0].validation.statistics.tokens
    say(f"against {run.reference}, {tokens} tokens of {run.text.origin} in chunks of {run.chunking.ctx}\n")
    rows = table_rows(run, gates)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *others = (text.rjust(width) for text, width in zip(row, widths, strict=True))
        say("  ".join([first.strip().ljust(widths[0]), *others]).rstrip())
    say("\n● no other file here is both smaller and more faithful")
