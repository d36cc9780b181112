"""`edgepack validate`: how faithfully a file says what its original says, and whether that is enough."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import json_option, note, print_json, terminal_progress
from edgepack.cli.scoring_options import gate_options, report_option, scoring_options
from edgepack.errors import CheckFailedError

if TYPE_CHECKING:
    from edgepack.edge.fidelity.run import Candidate, FidelityRun
    from edgepack.edge.fidelity.validate import Gates
    from edgepack.pipeline.fidelity import ScoringOptions

_PATH = click.Path(path_type=Path)
_QUICK_BYTES = 200_000_000


@click.command("validate")
@click.argument("candidate", type=_PATH)
@click.option("--reference", type=_PATH, help="The original: a Hugging Face folder or a GGUF; default its certificate.")
@scoring_options
@gate_options
@report_option
@click.option(
    "--suggest/--no-suggest",
    default=None,
    help="When a gate fails, try larger types and name the one that passes; by default for small models.",
)
@json_option
def command(
    candidate: Path,
    reference: Path | None,
    text_path: Path | None,
    min_agreement: float | None,
    max_kl: float | None,
    max_perplexity_ratio: float | None,
    report: Path | None,
    suggest: bool | None,
    as_json: bool,
    **scoring: Any,
) -> int:
    """Hold CANDIDATE against the original it was made from, token by token.

    Without --reference, the certificate inside the archive (or beside the GGUF) is replayed: does this machine
    compute what the publisher's did?

    Gates look at the end of the 95 % interval that is against the candidate; a missed one exits with 1.
    """
    from edgepack.edge.fidelity.validate import Gates
    from edgepack.pipeline.fidelity import ScoringOptions, run_validation

    gates = Gates(min_agreement, max_kl, max_perplexity_ratio)
    if reference is None:
        return _replay(candidate, gates, ScoringOptions(**scoring), as_json=as_json)
    run = run_validation(reference, [candidate], text_path, ScoringOptions(**scoring), terminal_progress)
    found = run.candidates[0].validation
    if report is not None:
        run = write_report(run, gates, reference, report)
    elif not found.passed(gates):
        run = with_causes(run, reference)
    _print(run, gates, as_json=as_json)
    if found.passed(gates):
        return 0
    if _may_help(run.candidates[0]) and (_is_quick(reference) if suggest is None else suggest):
        _suggest(run.candidates[0].bytes, reference, text_path, gates, ScoringOptions(**scoring))
    return CheckFailedError.exit_code


def _may_help(candidate: Candidate) -> bool:
    """Whether a larger type could pass where this file failed: not when something else than precision is wrong."""
    broken = candidate.findings is not None and candidate.findings.suspicions
    return candidate.validation.tokens_differ is None and not broken


def _is_quick(reference: Path) -> bool:
    """Whether trying larger types of `reference` is a matter of a minute or so: a folder of small weights."""
    return reference.is_dir() and sum(path.stat().st_size for path in reference.iterdir()) < _QUICK_BYTES


def _replay(candidate: Path, gates: Gates, options: ScoringOptions, *, as_json: bool) -> int:
    """Replay the file's own certificate."""
    from edgepack.edge.fidelity.outcome import as_lines, finite, replay_json
    from edgepack.pipeline.certify import run_replay

    result, stored = run_replay(candidate, options, terminal_progress)
    failed = [gate for gate in result.validation.gate_results(gates) if not gate.passed]
    if as_json:
        print_json(finite(replay_json(result, stored, gates)))
    else:
        click.echo("\n".join([*as_lines(result.validation), "", str(result)]))
    for gate in failed:
        note(f"FAILED {gate.name}: {gate.detail}")
    if not result.reproduced:
        note(f"FAILED certificate: {result}: suspect this machine's driver, its memory or the file")
    return CheckFailedError.exit_code if failed or not result.reproduced else 0


def _suggest(least_bytes: int, reference: Path, text: Path | None, gates: Gates, options: ScoringOptions) -> None:
    """Say which larger type of file would pass; the files that are tried for it are thrown away."""
    from edgepack.pipeline.suggest import larger_target_that_passes

    try:
        note(f"try {larger_target_that_passes(least_bytes, reference, text, gates, options, note, terminal_progress)}")
    except CheckFailedError as error:
        note(str(error))


def with_causes(run: FidelityRun, reference: Path) -> FidelityRun:
    """The run with what the files' contents tell; as it was where the reference cannot be mapped."""
    from edgepack.errors import EdgepackError
    from edgepack.pipeline.fidelity import with_findings

    try:
        return with_findings(run, reference, terminal_progress)
    except EdgepackError as error:
        note(f"weights were not compared: {error}")
        return run


def write_report(run: FidelityRun, gates: Gates, reference: Path, report: Path) -> FidelityRun:
    """Write the HTML page, weights compared; gives back the run with what that found."""
    from edgepack.atomic_file import atomic_output
    from edgepack.edge.fidelity.report import render

    run = with_causes(run, reference)
    page = render(run, gates).encode()
    with atomic_output(report, len(page)) as stream:
        stream.write(page)
    return run


def _print(run: FidelityRun, gates: Gates, *, as_json: bool) -> None:
    from edgepack.edge.fidelity.outcome import as_json as validation_json
    from edgepack.edge.fidelity.outcome import as_lines, finite, floor_json, floor_lines, greedy_json, greedy_line

    candidate = run.candidates[0]
    found = candidate.validation
    if as_json:
        told = {
            "reference": run.reference,
            "text": {"origin": run.text.origin, "sha256": run.text.sha256},
            "noise_floor": floor_json(run),
            "greedy": greedy_json(candidate.greedy),
            "findings": asdict(candidate.findings) if candidate.findings else None,
        }
        print_json(finite({**validation_json(found, gates, run.chunking), **told}))
    else:
        click.echo(f"{found.candidate} against {run.reference}")
        scored = f"{found.statistics.tokens} tokens of {run.text.origin}"
        click.echo(f"{scored}, {found.chunks} chunks of {run.chunking.ctx}")
        click.echo("\n".join(["", *as_lines(found), *greedy_line(candidate.greedy), *floor_lines(run), ""]))
    report_gates(candidate, gates, quiet=as_json)


def report_gates(candidate: Candidate, gates: Gates, *, quiet: bool) -> None:
    """Say how the gates went: failures and their likely causes always, on stderr; successes to people."""
    found = candidate.validation
    results = found.gate_results(gates)
    failed = [result for result in results if not result.passed]
    for result in failed:
        note(f"FAILED {result.name}: {result.detail}")
    if failed and found.first_clear:
        token = found.first_clear
        said = f"{found.spell([token.reference])!r} became {found.spell([token.candidate])!r}"
        note(f"first goes wrong at token {token.position}: {said} after {found.spell(token.context[-8:])!r}")
    for line in candidate.findings.suspicions if failed and candidate.findings else []:
        note(f"look at {line}")
    if not quiet and not failed:
        for result in results:
            click.echo(f"passed {result.name}: {result.detail}")
