"""A validation as the JSON object that scripts read and as the lines that people read; it measures nothing."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgepack.edge.fidelity.greedy import NARROW_MARGIN
from edgepack.edge.fidelity.reconstruction import reconstruction_gates, reconstruction_of
from edgepack.edge.fidelity.run import pareto_front
from edgepack.edge.fidelity.scorers.scorer import Chunking
from edgepack.edge.fidelity.statistics import QUANTILES
from edgepack.edge.fidelity.validate import perplexity_ratio

if TYPE_CHECKING:
    from edgepack.edge.fidelity.certificate import Replay
    from edgepack.edge.fidelity.gates import Gates
    from edgepack.edge.fidelity.greedy import GreedyAgreement
    from edgepack.edge.fidelity.run import Candidate, FidelityRun, FileFindings
    from edgepack.edge.fidelity.statistics import AgreementStatistics, ClusteredMean
    from edgepack.edge.fidelity.stored_reference import StoredReference
    from edgepack.edge.fidelity.validate import Validation


def candidate_json(candidate: Candidate, gates: Gates, chunking: Chunking) -> dict[str, Any]:
    """As `as_json`, with the gates on the file's weights and how far its matrices are, where they were compared."""
    told = as_json(candidate.validation, gates, chunking, candidate.findings)
    if candidate.findings is not None:
        told["reconstruction"] = finite(asdict(reconstruction_of(candidate.findings)))
    return told


def as_json(
    validation: Validation, gates: Gates, chunking: Chunking, findings: FileFindings | None = None
) -> dict[str, Any]:
    """The validation's part of `edgepack validate --json`; numbers that are not finite become null."""
    statistics = validation.statistics
    results = [*validation.gate_results(gates), *reconstruction_gates(findings, gates)]
    return finite(
        {
            "candidate": validation.candidate,
            "passed": all(result.passed for result in results),
            "gates": [asdict(result) for result in results],
            **figures(statistics),
            "ctx": chunking.ctx,
            "stride": chunking.stride,
            "chunks": validation.chunks,
            "examples": [asdict(example) for example in validation.examples],
            "tokens_differ": asdict(validation.tokens_differ) if validation.tokens_differ else None,
            "first_clear_difference": asdict(validation.first_clear) if validation.first_clear else None,
            "seconds": validation.seconds,
            "tokens_per_second": statistics.tokens / validation.seconds if validation.seconds else None,
        }
    )


def replay_json(result: Replay, stored: StoredReference, gates: Gates) -> dict[str, Any]:
    """A replay as the contract's keys, with what the publisher stated."""
    chunking = Chunking(int(stored.tokens.shape[1]))
    told = as_json(result.validation, gates, chunking)
    return {
        **told,
        "passed": told["passed"] and result.reproduced,
        "reproduced": result.reproduced,
        "same_choice": result.same_choice,
        "log_probability_change": result.log_probability_change,
        "publisher": {"mean_kl": result.publisher_kl, **stored.facts},
    }


def floor_json(run: FidelityRun) -> dict[str, Any]:
    """The reference's own noise: arithmetic → its main figures."""
    floor = {}
    for validation in run.floor:
        found = figures(validation.statistics)
        kept = ("tokens", "top1_agreement", "top1_interval", "mean_kl")
        floor[validation.candidate] = finite({key: found[key] for key in kept})
    return floor


def greedy_json(greedy: GreedyAgreement | None) -> dict[str, Any] | None:
    """Free-running agreement as plain numbers."""
    if greedy is None:
        return None
    return {
        "mean_length": greedy.mean_length,
        "median_length": greedy.median_length,
        "never_parted": greedy.never,
        "narrow_partings": greedy.narrow,
        "partings": [asdict(parting) for parting in greedy.partings],
    }


def greedy_line(greedy: GreedyAgreement | None) -> list[str]:
    """Free-running agreement as a line, or none."""
    if greedy is None:
        return []
    limit = max(parting.limit for parting in greedy.partings)
    length = f"{greedy.mean_length:.0f} of {limit} tokens alike on average of {len(greedy.partings)}"
    reasons = f"{greedy.narrow} parted where the original was undecided (margin below {NARROW_MARGIN} nats)"
    return [f"greedy writing    {length}; {greedy.never} never parted, {reasons}"]


def floor_lines(run: FidelityRun) -> list[str]:
    """The noise floor as lines for a terminal."""
    return [
        f"noise floor       {percent(validation.statistics.agreement.mean)}"
        f"   KL {validation.statistics.divergence.mean:.2g}   {validation.candidate},"
        f" {validation.statistics.tokens} tokens"
        for validation in run.floor
    ]


def table_rows(run: FidelityRun, gates: Gates) -> list[list[str]]:
    """A comparison as rows of text, the heading first."""
    from edgepack.quantities import format_size

    front = pareto_front(
        [candidate.bytes for candidate in run.candidates],
        [candidate.validation.statistics.divergence.mean for candidate in run.candidates],
    )
    rows = [["file", "size", "agreement", "95 % interval", "mean KL", "99.9 % KL", "ppl ratio", "", ""]]
    for candidate, marked in zip(run.candidates, front, strict=True):
        verdict = "passed" if candidate.passed(gates) else "FAILED"
        row = _table_row(candidate.path.name, candidate.validation)
        rows.append([row[0], format_size(candidate.bytes), *row[1:], verdict, "●" if marked else ""])
    rows += [[row[0], "", *row[1:], "", ""] for row in (_table_row(f.candidate, f) for f in run.floor)]
    return rows


def _table_row(name: str, validation: Validation) -> list[str]:
    statistics = validation.statistics
    low, high = statistics.agreement.share_interval()
    return [
        name,
        percent(statistics.agreement.mean),
        f"{percent(low)} to {percent(high)}",
        f"{statistics.divergence.mean:.2g}",
        f"{statistics.histogram.quantile(0.999):.2g}",
        f"{perplexity_ratio(statistics)[0]:.4f}",
    ]


def figures(statistics: AgreementStatistics) -> dict[str, Any]:
    """Every figure of a text, as plain numbers."""
    ratio, ratio_interval = perplexity_ratio(statistics)
    return {
        "tokens": statistics.tokens,
        "top1_agreement": statistics.agreement.mean,
        "top1_interval": list(statistics.agreement.share_interval()),
        "top5_agreement": statistics.top5.mean,
        "top5_interval": list(statistics.top5.share_interval()),
        "mean_kl": statistics.divergence.mean,
        "mean_kl_interval": list(statistics.divergence.interval()),
        "kl_quantiles": {f"{q:g}": statistics.histogram.quantile(q) for q in QUANTILES},
        "max_kl": statistics.histogram.maximum,
        "infinite_kl_tokens": statistics.histogram.infinite,
        "perplexity": {
            "reference": _exp(statistics.reference_loss),
            "candidate": _exp(statistics.candidate_loss),
            "ratio": ratio,
            "ratio_interval": list(ratio_interval),
            "correlation": statistics.losses.correlation,
        },
        "probability_change": {
            "mean": statistics.probability_change.mean,
            "rms": math.sqrt(statistics.squared_change.mean) if statistics.tokens else math.nan,
        },
        "flips": {"lost": statistics.lost, "gained": statistics.gained},
    }


def finite(value: dict[str, Any]) -> dict[str, Any]:
    """`value` with every number that JSON cannot hold replaced by None, at any depth."""
    return {key: clean(item) for key, item in value.items()}


def clean(value: Any) -> Any:
    """As `finite`, for any value."""
    if isinstance(value, dict):
        return finite(value)
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def as_lines(validation: Validation) -> list[str]:
    """The figures as lines for a terminal."""
    statistics = validation.statistics
    low, high = statistics.agreement.share_interval()
    ratio, (ratio_low, ratio_high) = perplexity_ratio(statistics)
    quantiles = "  ".join(f"{100 * q:g} % {statistics.histogram.quantile(q):.3g}" for q in QUANTILES)
    rms = math.sqrt(statistics.squared_change.mean)
    perplexities = f"{_exp(statistics.candidate_loss):.4g}, reference {_exp(statistics.reference_loss):.4g}"
    largest = statistics.histogram.maximum
    return [
        f"top-1 agreement   {percent(statistics.agreement.mean)}   95 % interval {percent(low)} to {percent(high)}",
        f"top-5 agreement   {percent(statistics.top5.mean)}",
        f"mean KL           {statistics.divergence.mean:.3g} nats   {quantiles}   max {largest:.3g}",
        f"perplexity        {perplexities}   ratio {ratio:.4f} ({ratio_low:.4f} to {ratio_high:.4f})",
        f"Δp                mean {100 * statistics.probability_change.mean:+.3f} %   RMS {100 * rms:.2f} %",
        f"flips             {statistics.lost} right answers lost, {statistics.gained} gained",
    ]


def percent(share: float) -> str:
    """A share with as many digits as tell it from 1: `95.24 %`, `99.996 %`."""
    digits = 2 if share < 0.999 else 3
    return f"{100 * share:.{digits}f} %"


def _exp(loss: ClusteredMean) -> float:
    try:
        return math.exp(loss.mean)
    except OverflowError:
        return math.inf
