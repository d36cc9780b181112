"""What an export gave, and how scripts read it. Making it is `pipeline.export`'s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.pipeline.makers.separate import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgepack.edge.fidelity.gates import Gates
    from edgepack.edge.fidelity.run import FidelityRun
    from edgepack.pipeline.goals.judging import Rung
    from edgepack.pipeline.outline import Json, Made, Outline


@dataclass(frozen=True)
class ExportResult:
    """What an export gave, or with `dry_run` would give.

    Attributes:
        output: the GGUF, its first shard, or the archive.
        bytes: of the model's files, or of the archive.
        seconds: wall time.
        outline: of the file.
        made: what was written; None of a dry run.
        adapters: LoRA files beside the output.
        projector: the file of what sees beside the output, or None.
        tried: what a search judged, in order.
        validation: the file held against its original, where that was asked for.
        gates: the bars that it had to clear.
        cluster: what the nodes of a cluster did, or are predicted to do; None where there is none.
    """

    output: Path
    bytes: int
    seconds: float
    outline: Outline
    made: Made | None
    adapters: tuple[Path, ...]
    projector: Path | None
    tried: tuple[Rung, ...]
    validation: FidelityRun | None
    gates: Gates
    cluster: Mapping[str, Json] | None = None

    @property
    def beside(self) -> tuple[Path, ...]:
        """Every file that belongs to the model: adapters, and what sees."""
        return (*self.adapters, *([] if self.projector is None else [self.projector]))

    @property
    def passed(self) -> bool:
        """Whether no gate was missed."""
        return self.validation is None or self.validation.candidates[0].passed(self.gates)

    def as_json(self) -> dict[str, Json]:
        """The result as scripts read it."""
        found: dict[str, Json] = {
            "output": str(self.output), "bytes": self.bytes, "seconds": round(self.seconds, 3),
            "target": self.outline.target, "source_bytes": self.outline.source_bytes,
            "tensors": [row.as_json() for row in self.outline.tensors],
        }  # fmt: skip
        if self.outline.limits:
            found["limits"] = list(self.outline.limits)
        if SUFFIX in self.outline.beside and self.output.suffix != ".edgepack":
            found["adapter"] = str(self.output.with_name(f"{self.output.stem}{SUFFIX}.gguf"))
        if self.outline.projector is not None and self.output.suffix != ".edgepack":
            found["projector"] = str(self.output.with_name(self.outline.projector))
        if self.made is not None:
            found["passes"] = [dict(figures) for figures in self.made.figures]
            found["notes"] = list(self.made.notes)
            found["adapters"] = [{"output": str(path), "bytes": path.stat().st_size} for path in self.adapters]
            found |= self.made.more
        if self.cluster is not None:
            found["cluster"] = dict(self.cluster)
        if self.tried:
            found["tried"] = [_tried(rung) for rung in self.tried]
        if self.validation is not None:
            from edgepack.edge.fidelity.outcome import candidate_json

            run = self.validation
            found["validation"] = candidate_json(run.candidates[0], self.gates, run.chunking)
        return found


def _tried(rung: Rung) -> dict[str, Json]:
    statistics = rung.validation.statistics
    return {
        "target": rung.target, "bytes": rung.bytes, "top1_agreement": statistics.agreement.mean,
        "top1_interval": list(statistics.agreement.share_interval()), "mean_kl": statistics.divergence.mean,
        "passed": rung.passed,
    }  # fmt: skip
