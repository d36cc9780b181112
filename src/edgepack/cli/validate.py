"""`edgepack validate`: how faithfully a file says what its original says, and whether that is enough."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import json_option, note, print_json, terminal_progress
from edgepack.errors import CheckFailedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.edge.validate import GateResult

_PATH = click.Path(path_type=Path)


def scoring_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options on how text is scored, which `validate`, `compare` and `certify` share."""
    for option in (
        click.option("--n-gpu-layers", type=int, default=0, help="llama.cpp's layers on the GPU; -1 is all."),
        click.option("--kv-type", default="f32", show_default=True,
                     help="llama.cpp's cache; f32 measures the file alone, f16 as devices run it."),
        click.option("--threads", type=int, default=0, help="Cores in all; default every core."),
        click.option("--chunks", "max_chunks", type=int, help="Score only the first N chunks."),
        click.option("--stride", type=int, help="A sliding window of this step instead of chunks side by side."),
        click.option("--ctx", type=int, help="Tokens in a chunk; default 512, less where the reference gains nothing."),
        click.option("--text", "text_path", type=_PATH, help="UTF-8 text; default the reference's own samples."),
    ):  # fmt: skip
        function = option(function)
    return function


def gate_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The bars to clear."""
    for option in (
        click.option("--max-perplexity-ratio", type=float, help="Largest perplexity over the reference's."),
        click.option("--max-kl", type=float, help="Largest mean KL divergence, in nats."),
        click.option("--min-agreement", type=float, help="Least share of equal first choices, such as 0.95."),
    ):
        function = option(function)
    return function


@click.command("validate")
@click.argument("candidate", type=_PATH)
@click.option("--reference", type=_PATH, required=True, help="The original: a Hugging Face folder or a GGUF.")
@scoring_options
@gate_options
@json_option
def command(
    candidate: Path,
    reference: Path,
    text_path: Path | None,
    min_agreement: float | None,
    max_kl: float | None,
    max_perplexity_ratio: float | None,
    as_json: bool,
    **scoring: Any,
) -> int:
    """Hold CANDIDATE against the original it was made from, token by token.

    Gates look at the end of the 95 % interval that is against the candidate; a missed one exits with 1.
    """
    from edgepack.edge.validate_report import as_json as validation_json
    from edgepack.edge.validate_report import as_lines
    from edgepack.pipeline_fidelity import Gates, ScoringOptions, run_validation

    gates = Gates(min_agreement, max_kl, max_perplexity_ratio)
    run = run_validation(reference, [candidate], text_path, ScoringOptions(**scoring), terminal_progress)
    found = run.validations[0]
    results = found.gate_results(gates)
    if as_json:
        told = {"reference": run.reference, "text": {"origin": run.text.origin, "sha256": run.text.sha256}}
        print_json({**validation_json(found, gates, run.chunking), **told})
    else:
        click.echo(f"{found.candidate} against {run.reference}")
        click.echo(
            f"{found.statistics.tokens} tokens of {run.text.origin}, {found.chunks} chunks of {run.chunking.ctx}"
        )
        click.echo("\n".join(["", *as_lines(found), ""]))
    failed = [result for result in results if not result.passed]
    report_gates(results, failed, quiet=as_json)
    return CheckFailedError.exit_code if failed else 0


def report_gates(results: list[GateResult], failed: list[GateResult], *, quiet: bool) -> None:
    """Say how the gates went: failures always, on stderr; successes to people."""
    for result in failed:
        note(f"FAILED {result.name}: {result.detail}")
    if not quiet and not failed:
        for result in results:
            click.echo(f"passed {result.name}: {result.detail}")
