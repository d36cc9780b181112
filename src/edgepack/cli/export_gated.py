"""`edgepack export` with gates: what was tried, and the verdict on what was written.

Scoring is `pipeline.fidelity`'s, the search for a target `pipeline.gated`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import note, terminal_progress
from edgepack.cli.validate import report_gates
from edgepack.errors import CheckFailedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgepack.edge.fidelity.run import FidelityRun
    from edgepack.edge.fidelity.validate import Gates
    from edgepack.pipeline.export import ExportRequest, PreparedExport
    from edgepack.pipeline.fidelity import ScoringOptions
    from edgepack.pipeline.ladder import Ladder


def gates_of(options: Mapping[str, Any]) -> Gates:
    """The bars that the options set."""
    from edgepack.edge.fidelity.validate import Gates

    return Gates(options["min_agreement"], options["max_kl"], None)


def scoring_options(options: Mapping[str, Any]) -> ScoringOptions:
    """How the options want text scored."""
    from edgepack.pipeline.fidelity import ScoringOptions

    return ScoringOptions(max_chunks=options["chunks"], threads=options["threads"] or 0, floor=False)


def export_by_gate(request: ExportRequest, options: Mapping[str, Any]) -> tuple[PreparedExport, dict[str, Any]]:
    """Export the smallest type that clears the gates; gives it and what was tried, as JSON has it."""
    from edgepack.pipeline.gated import export_smallest

    prepared, ladder = export_smallest(
        request, gates_of(options), options["text"], scoring_options(options), tell=note, progress=terminal_progress
    )
    return prepared, tried_json(ladder)


def tried_json(ladder: Ladder) -> dict[str, Any]:
    """What was tried, under the key `tried`."""
    tried = [
        {
            "target": rung.target,
            "bytes": rung.bytes,
            "top1_agreement": rung.validation.statistics.agreement.mean,
            "top1_interval": list(rung.validation.statistics.agreement.share_interval()),
            "mean_kl": rung.validation.statistics.divergence.mean,
            "passed": rung.passed,
        }
        for rung in ladder.tried
    ]
    return {"tried": tried}


@dataclass(frozen=True)
class Judged:
    """How an export did against its original."""

    run: FidelityRun
    gates: Gates

    @property
    def as_json(self) -> dict[str, Any]:
        """The figures under the key `validation`."""
        from edgepack.edge.fidelity.outcome import as_json

        return {"validation": as_json(self.run.candidates[0].validation, self.gates, self.run.chunking)}

    def report(self, *, quiet: bool) -> int:
        """Print the figures and the verdict; gives the exit code."""
        from edgepack.edge.fidelity.outcome import as_lines

        (candidate,) = self.run.candidates
        if not quiet:
            click.echo("\n".join(as_lines(candidate.validation)))
        report_gates(candidate, self.gates, quiet=quiet)
        return 0 if candidate.validation.passed(self.gates) else CheckFailedError.exit_code


def judge(model: Path, path: Path, options: Mapping[str, Any], adapters: tuple[Path, ...] = ()) -> Judged:
    """Hold what was written at `path`, with its adapters, against the model that it was made from."""
    from edgepack.pipeline.fidelity import run_validation

    scoring = replace(scoring_options(options), adapters=adapters)
    return Judged(run_validation(model, [path], options["text"], scoring, terminal_progress), gates_of(options))
