"""What holding files against their original gave, as values with figures, JSON and a page. It measures nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from edgepack.edge.fidelity import outcome
from edgepack.edge.fidelity.report.page import render
from edgepack.edge.fidelity.run import pareto_front
from edgepack.edge.fidelity.validate import perplexity_ratio

if TYPE_CHECKING:
    from edgepack.api.values import JsonObject
    from edgepack.edge.fidelity.certificate import Replay
    from edgepack.edge.fidelity.gates import GateResult, Gates
    from edgepack.edge.fidelity.run import Candidate, FidelityRun
    from edgepack.edge.fidelity.stored_reference import StoredReference
    from edgepack.edge.fidelity.validate import Validation


@dataclass(frozen=True)
class ValidationResult:
    """One file held against its original.

    Attributes:
        run: everything that was measured.
        gates: the bars to clear.
    """

    run: FidelityRun
    gates: Gates

    @property
    def candidate(self) -> Candidate:
        """The file, with all that is known of it."""
        return self.run.candidates[0]

    @property
    def validation(self) -> Validation:
        """The pass over the text, with the worst tokens."""
        return self.candidate.validation

    @property
    def passed(self) -> bool:
        """Whether every gate is cleared; without gates, whether both read the same tokens."""
        return self.candidate.passed(self.gates)

    @property
    def failed_gates(self) -> tuple[GateResult, ...]:
        """The gates that were missed, each with its numbers."""
        return tuple(gate for gate in self.candidate.gate_results(self.gates) if not gate.passed)

    @property
    def tokens(self) -> int:
        """Tokens that were scored."""
        return self.validation.statistics.tokens

    @property
    def top1_agreement(self) -> float:
        """Share of tokens where both put the same one first, 0 to 1."""
        return self.validation.statistics.agreement.mean

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95 % interval of `top1_agreement`."""
        return self.validation.statistics.agreement.share_interval()

    @property
    def mean_kl(self) -> float:
        """Mean divergence of the file's distribution from the original's, in nats."""
        return self.validation.statistics.divergence.mean

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity of the file over the original's."""
        return perplexity_ratio(self.validation.statistics)[0]

    @property
    def figures(self) -> JsonObject:
        """Every figure of the text, as plain numbers; what is not finite is None."""
        return outcome.finite(outcome.figures(self.validation.statistics))

    def json(self) -> JsonObject:
        """The object that `edgepack validate --json` prints."""
        run, found = self.run, self.candidate
        told = {
            "reference": run.reference,
            "text": {"origin": run.text.origin, "sha256": run.text.sha256},
            "noise_floor": outcome.floor_json(run),
            "greedy": outcome.greedy_json(found.greedy),
            "findings": asdict(found.findings) if found.findings else None,
        }
        return outcome.finite({**outcome.candidate_json(found, self.gates, run.chunking), **told})

    def html(self) -> str:
        """A self-contained page: verdict, figures, charts, worst tokens, weights where they were compared."""
        return render(self.run, self.gates)


@dataclass(frozen=True)
class ComparisonResult:
    """Several files held against one original.

    Attributes:
        run: everything that was measured.
        gates: the bars to clear.
    """

    run: FidelityRun
    gates: Gates

    @property
    def results(self) -> tuple[ValidationResult, ...]:
        """Each file's result, in the order asked for."""
        return tuple(ValidationResult(self.run.only(candidate), self.gates) for candidate in self.run.candidates)

    @property
    def passed(self) -> bool:
        """Whether any of the files clears every gate."""
        return any(candidate.passed(self.gates) for candidate in self.run.candidates)

    @property
    def on_pareto_front(self) -> tuple[bool, ...]:
        """For each file, whether no other one is both smaller and more faithful."""
        sizes = [candidate.bytes for candidate in self.run.candidates]
        divergences = [candidate.validation.statistics.divergence.mean for candidate in self.run.candidates]
        return tuple(pareto_front(sizes, divergences))

    def json(self) -> JsonObject:
        """The object that `edgepack compare --json` prints."""
        run = self.run
        return {
            "reference": run.reference,
            "text": {"origin": run.text.origin, "sha256": run.text.sha256},
            "noise_floor": outcome.floor_json(run),
            "candidates": [
                {"path": str(candidate.path), "bytes": candidate.bytes, "on_pareto_front": marked,
                 "greedy": outcome.greedy_json(candidate.greedy),
                 **outcome.candidate_json(candidate, self.gates, run.chunking)}
                for candidate, marked in zip(run.candidates, self.on_pareto_front, strict=True)
            ],
        }  # fmt: skip

    def html(self) -> str:
        """A self-contained page with every file and the front."""
        return render(self.run, self.gates)


@dataclass(frozen=True)
class ReplayResult:
    """A certificate replayed on this machine.

    Attributes:
        replay: this machine's answers beside the publisher's.
        stored: the certificate.
        gates: the bars to clear.
    """

    replay: Replay
    stored: StoredReference
    gates: Gates

    @property
    def reproduced(self) -> bool:
        """Whether this machine computes what the publisher's did."""
        return self.replay.reproduced

    @property
    def failed_gates(self) -> tuple[GateResult, ...]:
        """The gates that were missed, each with its numbers."""
        return tuple(gate for gate in self.replay.validation.gate_results(self.gates) if not gate.passed)

    @property
    def passed(self) -> bool:
        """Whether the certificate is reproduced and every gate cleared."""
        return self.reproduced and not self.failed_gates

    def json(self) -> JsonObject:
        """The object that `edgepack validate FILE --json` prints."""
        return outcome.finite(outcome.replay_json(self.replay, self.stored, self.gates))
