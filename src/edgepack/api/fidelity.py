"""`edgepack.validate`, `compare`, `replay`, `certify`: measured by `pipeline` and `edge.fidelity`, told here."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.api.measured_inputs import check_text, opened_inputs, scoring_with
from edgepack.api.opening import ignore
from edgepack.api.trust import Trusted, policy_for
from edgepack.api.validation import ComparisonResult, ReplayResult, ValidationResult
from edgepack.api.values import FilePath, optional_path, paths
from edgepack.edge.fidelity.certificate import DEFAULT_TOKENS
from edgepack.edge.fidelity.certificate_file import certificate_path, has_derivation, run_replay
from edgepack.edge.fidelity.gates import Gates
from edgepack.edge.fidelity.scoring import ScoringOptions
from edgepack.files.claim import claimed_output
from edgepack.files.remote import is_url
from edgepack.packaging.derivation import beside_path
from edgepack.pipeline import certify as certificates
from edgepack.pipeline.located import opened_place
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgepack.edge.fidelity.tasks.tasks import Comparison
    from edgepack.pipeline.certify import Certified
    from edgepack.progress import Progress


def validate(
    candidate: FilePath,
    reference: FilePath,
    *,
    text: FilePath | None = None,
    min_agreement: float | None = None,
    max_kl: float | None = None,
    max_perplexity_ratio: float | None = None,
    max_mean_error: float | None = None,
    max_tensor_error: float | None = None,
    ctx: int | None = None,
    chunks: int | None = None,
    threads: int | None = None,
    scoring: ScoringOptions | None = None,
    trusted: Trusted = (),
    findings: bool | None = None,
    progress: Progress = silent,
    note: Callable[[str], object] = ignore,
) -> ValidationResult:
    """Hold a file against the original that it was made from, token by token.

    Args:
        candidate: a GGUF or an `.edgepack`.
        reference: the original: a Hugging Face folder, a URL of fsspec's of one (`s3://…`) as text, a GGUF, or a
            stored reference (`.edgeref`).
        text: a UTF-8 text file; by default text that the original writes itself, unless it lies at a URL.
        min_agreement: a gate: least top-1 agreement, by the lower end of the 95 % interval.
        max_kl: a gate: largest mean KL divergence in nats, by the upper end.
        max_perplexity_ratio: a gate: largest perplexity over the original's, by the upper end.
        max_mean_error: a gate: what the mean of the matrices' relative errors must be below.
        max_tensor_error: a gate: what the largest of them must be below.
        ctx: tokens in a chunk; by default the longest up to 512 that the original makes use of.
        chunks: score only the first so many.
        threads: cores in all; by default every core.
        scoring: everything else about how text is scored; what is said beside it counts.
        trusted: files of public keys, one of which must have signed (by default: of the trust store), or a policy.
        findings: compare every tensor and setting too; by default only when a gate fails.
        progress: told of tokens scored.
        note: told what a person would like to know.

    Raises:
        UsageError: a file is not there, a gate is out of range, the text is too short.
        CheckFailedError: the vocabularies differ in size.
        DependencyError: the original runs in torch, which is not installed.
        EdgepackError: whatever opening either of them finds wrong.
    """
    gates = Gates(min_agreement, max_kl, max_perplexity_ratio, max_mean_error, max_tensor_error)
    chosen = scoring_with(scoring, ctx, chunks, threads, trusted)
    with opened_inputs(reference, text, chosen, progress, note) as inputs:
        run = inputs.run([Path(candidate)])
        failed = not run.candidates[0].validation.passed(gates)
        wanted = gates.judges_weights or (failed if findings is None else findings)
        return ValidationResult(inputs.with_causes(run, needed=gates.judges_weights) if wanted else run, gates)


def compare(
    candidates: Sequence[FilePath],
    reference: FilePath,
    *,
    text: FilePath | None = None,
    min_agreement: float | None = None,
    max_kl: float | None = None,
    max_perplexity_ratio: float | None = None,
    max_mean_error: float | None = None,
    max_tensor_error: float | None = None,
    ctx: int | None = None,
    chunks: int | None = None,
    threads: int | None = None,
    scoring: ScoringOptions | None = None,
    trusted: Trusted = (),
    findings: bool = False,
    progress: Progress = silent,
    note: Callable[[str], object] = ignore,
) -> ComparisonResult:
    """Hold several files against one original in one pass, and say which of them no other one beats.

    Args:
        candidates: GGUFs and `.edgepack` files, at least one.
        reference: the original, as in `validate`, and so all that follow.
        text: what is scored.
        min_agreement: a gate.
        max_kl: a gate.
        max_perplexity_ratio: a gate.
        max_mean_error: a gate on the weights.
        max_tensor_error: another.
        ctx: tokens in a chunk.
        chunks: score only the first so many.
        threads: cores in all.
        scoring: everything else about how text is scored.
        trusted: files of public keys, one of which must have signed (by default: of the trust store), or a policy.
        findings: compare every tensor and setting too.
        progress: told of tokens scored.
        note: told what a person would like to know.

    Raises:
        EdgepackError: as `validate`.
    """
    gates = Gates(min_agreement, max_kl, max_perplexity_ratio, max_mean_error, max_tensor_error)
    chosen = scoring_with(scoring, ctx, chunks, threads, trusted)
    with opened_inputs(reference, text, chosen, progress, note) as inputs:
        run = inputs.run(paths(candidates))
        wanted = gates.judges_weights or findings
        return ComparisonResult(inputs.with_causes(run, needed=gates.judges_weights) if wanted else run, gates)


def replay(
    file: FilePath,
    *,
    min_agreement: float | None = None,
    max_kl: float | None = None,
    max_perplexity_ratio: float | None = None,
    scoring: ScoringOptions | None = None,
    trusted: Trusted = (),
    progress: Progress = silent,
) -> ReplayResult:
    """Replay the certificate in an archive (or beside a GGUF): does this machine compute what the publisher's did?

    Needs neither the original nor its text.

    Args:
        file: what `certify` wrote.
        min_agreement: a gate, as in `validate`.
        max_kl: a gate.
        max_perplexity_ratio: a gate.
        scoring: how llama.cpp runs the file.
        trusted: files of public keys, one of which must have signed (by default: of the trust store), or a policy.
        progress: told of tokens scored.

    Raises:
        UsageError: there is no certificate.
        IntegrityError: it belongs to another file.
    """
    gates = Gates(min_agreement, max_kl, max_perplexity_ratio)
    result, stored = run_replay(Path(file), scoring_with(scoring, trusted=trusted), progress)
    return ReplayResult(result, stored, gates)


def certify(
    candidate: FilePath,
    reference: FilePath,
    output: FilePath | None = None,
    *,
    text: FilePath | None = None,
    stored_tokens: int = DEFAULT_TOKENS,
    ctx: int | None = None,
    chunks: int | None = None,
    force: bool = False,
    threads: int | None = None,
    scoring: ScoringOptions | None = None,
    trusted: Trusted = (),
    progress: Progress = silent,
) -> Certified:
    """Measure a file and pack it with the figures and with answers that any machine can `replay`.

    Signatures do not carry over to the new archive: sign after certifying.

    Args:
        candidate: a GGUF or an `.edgepack`.
        reference: the original, as in `validate`.
        output: an `.edgepack` (by default CANDIDATE-certified.edgepack); any other name gets the GGUF and, beside it,
            the certificate. A derivation goes with it, from an archive or from beside a GGUF.
        text: what is scored, as in `validate`, and so all that follow.
        stored_tokens: scored positions to store, rounded up to whole chunks.
        ctx: tokens in a chunk.
        chunks: score only the first so many.
        force: replace files that are there already; never an input.
        threads: cores in all.
        scoring: everything else about how text is scored; the original's own noise is measured where None.
        trusted: files of public keys, one of which must have signed (by default: of the trust store), or a policy.
        progress: of every stretch of work.

    Raises:
        EdgepackError: whatever opening, scoring or packing finds wrong; nothing is left behind.
    """
    candidate = Path(candidate)
    target = candidate.with_name(f"{candidate.stem}-certified.edgepack") if output is None else Path(output)
    options = scoring_with(scoring or ScoringOptions(floor=True), ctx, chunks, threads, trusted)
    check_text(reference, text)
    said, original = optional_path(text), optional_path(None if is_url(reference) else reference)
    inputs = [each for each in (candidate, original, said) if each is not None]
    with ExitStack() as claims:
        claims.enter_context(claimed_output(target, inputs=inputs, force=force))
        if target.suffix != ".edgepack":
            claims.enter_context(claimed_output(certificate_path(target), inputs=inputs, force=force))
            if has_derivation(candidate):
                claims.enter_context(claimed_output(beside_path(target), inputs=inputs, force=force))
        place, located = claims.enter_context(opened_place(reference, None))
        return certificates.certify(candidate, place, said, target, options, stored_tokens, progress, located=located)


def evaluate(
    candidate: FilePath,
    reference: FilePath,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    ctx: int = 512,
    threads: int | None = None,
    trusted: Trusted = (),
    progress: Progress = silent,
) -> Mapping[str, Mapping[str, Comparison]]:
    """Answer the same items with a file and its original; count flips, judge them by McNemar's test.

    Args:
        candidate: a GGUF or an `.edgepack`.
        reference: the original: a Hugging Face folder, its URL as text (items with choices alone), or a GGUF.
        tasks: paths of JSONL files of items; `hellaswag`, a small set of that form that ships with edgepack; or names
            of lm-evaluation-harness tasks where that is installed (`harness:hellaswag` for its own).
        limit: only the first so many items of each.
        ctx: the longest item, in tokens.
        threads: cores in all; by default every core.
        trusted: files of public keys, one of which must have signed (by default: of the trust store), or a policy.
        progress: told of items.

    Returns:
        task → measure → both models compared; of edgepack's own runner with `items_in_order`, one by one.

    Raises:
        UsageError: a file of items is not one, or an original at a URL would have to write.
        DependencyError: a task's name, and lm-evaluation-harness is not installed.
    """
    from edgepack.pipeline import evaluate as tasks_of

    options = ScoringOptions(ctx=ctx, threads=threads or 0, trust=policy_for(trusted))
    original = str(reference) if is_url(reference) else Path(reference)
    return tasks_of.evaluate(Path(candidate), original, tasks, options, limit, progress)
