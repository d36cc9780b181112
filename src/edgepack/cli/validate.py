"""`edgepack validate`: how faithfully a file says what its original says, and whether that is enough."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import force_option, json_option, note, print_json, say, terminal_progress
from edgepack.cli.place import Place
from edgepack.cli.scoring_options import gate_options, read_scoring, report_option, scoring_options
from edgepack.errors import CheckFailedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.api.validation import ComparisonResult, ValidationResult
    from edgepack.edge.fidelity.gates import Gates
    from edgepack.edge.fidelity.run import Candidate
    from edgepack.edge.fidelity.scoring import ScoringOptions

_PATH = click.Path(path_type=Path)


@click.command("validate")
@click.argument("candidate", type=_PATH)
@click.option("--reference", type=Place(),
              help="The original: a Hugging Face folder, its URL, or a GGUF; default its certificate.")  # fmt: skip
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    type=_PATH,
    metavar="FILE",
    help="A GGUF LoRA that CANDIDATE runs with, beside those in its archive; repeatable.",
)
@scoring_options
@gate_options
@report_option
@click.option(
    "--suggest/--no-suggest",
    default=False,
    help="When a gate fails, try larger types and name the one that passes.",
)
@force_option
@json_option
def command(
    candidate: Path,
    reference: Path | str | None,
    text_path: Path | None,
    min_agreement: float | None,
    max_kl: float | None,
    max_perplexity_ratio: float | None,
    max_mean_error: float | None,
    max_tensor_error: float | None,
    report: Path | None,
    suggest: bool,
    force: bool,
    as_json: bool,
    **scoring: Any,
) -> int:
    """Hold CANDIDATE against the original it was made from, token by token.

    Without --reference, the certificate inside the archive (or beside the GGUF) is replayed: does this machine
    compute what the publisher's did?

    Gates look at the end of the 95 % interval that is against the candidate; a missed one exits with 1.
    """
    from edgepack.api.fidelity import validate
    from edgepack.edge.fidelity.gates import Gates

    check_page(report, [candidate, None if reference is None else Path(reference), text_path], force)
    options = read_scoring(scoring)
    gates = Gates(min_agreement, max_kl, max_perplexity_ratio, max_mean_error, max_tensor_error)
    if reference is None:
        if gates.judges_weights:
            raise UsageError("--max-mean-error and --max-tensor-error compare weights: give --reference")
        return _replay(candidate, gates, options, as_json=as_json)
    from edgepack.api.embedders import gives_embeddings

    if Path(reference).suffix != ".edgeref" and gives_embeddings(candidate, options.trust or ()):
        return _embeddings(candidate, reference, text_path, gates, options, as_json=as_json)
    result = validate(
        candidate, reference, text=text_path, min_agreement=min_agreement, max_kl=max_kl,
        max_perplexity_ratio=max_perplexity_ratio, max_mean_error=max_mean_error, max_tensor_error=max_tensor_error,
        scoring=options, findings=None if report is None else True, progress=terminal_progress, note=note,
    )  # fmt: skip
    if report is not None:
        write_page(result, report, force)
    _print(result, as_json=as_json)
    if result.passed:
        return 0
    if not _may_help(result.candidate):
        return CheckFailedError.exit_code
    if not suggest:
        note("a larger type may pass: --suggest tries them and names it")
    else:
        _suggest(result.candidate.bytes, reference, text_path, result.gates, options)
    return CheckFailedError.exit_code


def _embeddings(
    candidate: Path, reference: Path | str, text: Path | None, gates: Gates, options: ScoringOptions, *, as_json: bool
) -> int:
    """An embedder has no next token: its embeddings are compared."""
    from edgepack.api.embedders import validate_embeddings

    if options.adapters:
        raise UsageError(f"'{candidate}' gives embeddings: expected no --adapter")
    if gates.max_kl or gates.max_perplexity_ratio or gates.judges_weights:
        raise UsageError(f"'{candidate}' gives embeddings: expected no gate but --min-agreement")
    found = validate_embeddings(
        candidate, reference, text=text, min_agreement=gates.min_agreement, threads=options.threads or None,
        trusted=options.trust or (), progress=terminal_progress,
    )  # fmt: skip
    if as_json:
        print_json(found.json())
    else:
        told, (low, high) = found.agreement, found.agreement.retrieval_interval
        say(f"{candidate.name} against {found.reference}: {told.texts} texts, {found.origin}")
        say(f"\ncosine            mean {told.mean_cosine:.6f}   5 % below {told.low_cosine:.6f}   "
                   f"least {told.least_cosine:.6f}")  # fmt: skip
        say(f"nearest text      {told.retrieval_agreement:.2%} the same   95 % interval {low:.2%} to {high:.2%}")
        say(f"ten nearest       {told.overlap:.2%} of them shared")
    for gate in found.gates:
        note(f"{'passed' if gate.passed else 'FAILED'} {gate.name}: {gate.detail}")
    return 0 if found.passed else CheckFailedError.exit_code


def _may_help(candidate: Candidate) -> bool:
    """Whether a larger type could pass where this file failed: not when something else than precision is wrong."""
    broken = candidate.findings is not None and candidate.findings.suspicions
    return candidate.validation.tokens_differ is None and not broken


def _replay(candidate: Path, gates: Gates, options: ScoringOptions, *, as_json: bool) -> int:
    """Replay the file's own certificate."""
    from edgepack.api.fidelity import replay
    from edgepack.edge.fidelity.outcome import as_lines

    if options.adapters:
        raise UsageError("--adapter changes what the file says: give --reference")
    result = replay(
        candidate, min_agreement=gates.min_agreement, max_kl=gates.max_kl,
        max_perplexity_ratio=gates.max_perplexity_ratio, scoring=options, progress=terminal_progress,
    )  # fmt: skip
    if as_json:
        print_json(result.json())
    else:
        say("\n".join([*as_lines(result.replay.validation), "", str(result.replay)]))
    for gate in result.failed_gates:
        note(f"FAILED {gate.name}: {gate.detail}")
    if not result.reproduced:
        note(f"FAILED certificate: {result.replay}: suspect this machine's driver, its memory or the file")
    return 0 if result.passed else CheckFailedError.exit_code


def _suggest(least_bytes: int, reference: Path | str, text: Path | None, gates: Gates, options: ScoringOptions) -> None:
    """Say which larger type of file would pass; the files that are tried for it are thrown away."""
    from edgepack.pipeline.goals.suggest import larger_target_that_passes

    try:
        note(f"try {larger_target_that_passes(least_bytes, reference, text, gates, options, note, terminal_progress)}")
    except CheckFailedError as error:
        note(str(error))


def write_page(result: ValidationResult | ComparisonResult, report: Path, force: bool) -> None:
    """Write the HTML page, whole or not at all; raises UsageError for a file that is there already without `force`."""
    from edgepack.files.output import write_output

    write_output(report, result.html().encode(), force=force)


def check_page(report: Path | None, inputs: Sequence[Path | None], force: bool) -> None:
    """Refuse a page that could not be written at the end, before the work."""
    from edgepack.files.claim import check_output

    if report is not None:
        check_output(report, inputs=[path for path in inputs if path is not None], force=force)


def _print(result: ValidationResult, *, as_json: bool) -> None:
    from edgepack.edge.fidelity.outcome import as_lines, floor_lines, greedy_line

    run, found = result.run, result.validation
    if as_json:
        print_json(result.json())
    else:
        say(f"{found.candidate} against {run.reference}")
        say(f"{result.tokens} tokens of {run.text.origin}, {found.chunks} chunks of {run.chunking.ctx}")
        greedy = greedy_line(result.candidate.greedy)
        say("\n".join(["", *as_lines(found), *greedy, *floor_lines(run), ""]))
    report_gates(result.candidate, result.gates, quiet=as_json)


def report_gates(candidate: Candidate, gates: Gates, *, quiet: bool) -> None:
    """Say how the gates went: failures and their likely causes always, on stderr; successes to people."""
    found = candidate.validation
    results = candidate.gate_results(gates)
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
            say(f"passed {result.name}: {result.detail}")
