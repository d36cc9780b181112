"""Makes a GGUF whose archive has a promised size or fidelity: measures curvature once, then searches one scalar.

The search is `pipeline.wire_run`'s, scoring `pipeline.fidelity`'s.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.pipeline.wire_run import Trial, WireRun, read_calibration
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgepack.export.wire.plan import WireSettings
    from edgepack.progress import Progress


@dataclass(frozen=True)
class Goal:
    """What the search must reach; exactly one is given.

    Attributes:
        bits: of the archive, for each weight that lies on a grid.
        max_size: of the archive, bytes.
        min_agreement: top-1 agreement that the lower end of its interval must reach.
        max_kl: mean divergence in nats that the upper end of its interval must not exceed.
    """

    bits: float | None = None
    max_size: int | None = None
    min_agreement: float | None = None
    max_kl: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.bits, self.max_size, self.min_agreement, self.max_kl) if value is not None]
        if len(given) != 1:
            raise UsageError("--target wire: expected exactly one of --bits, --max-size, --min-agreement, --max-kl")
        if given[0] <= 0 or (self.min_agreement or 0) >= 1:
            raise UsageError(f"--target wire: expected a goal above 0 (an agreement below 1), got {given[0]}")

    def wanted_bytes(self, weights: int) -> int | None:
        """The archive's size, where that is the goal."""
        return int(self.bits * weights / 8) if self.bits is not None else self.max_size


@dataclass(frozen=True)
class WireOutcome:
    """What was written.

    Attributes:
        output: the GGUF, or the archive where one was asked for.
        trial: the scale that was kept.
        trials: how many were tried.
        weights: on grids.
        seconds: wall time.
    """

    output: Path
    trial: Trial
    trials: int
    weights: int
    seconds: float


def export_wire(
    model: Path,
    output: Path,
    settings: WireSettings,
    goal: Goal,
    *,
    calibration: Path | None = None,
    text: Path | None = None,
    pre: str | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> WireOutcome:
    """Write the GGUF (or, where `output` ends in `.edgepack`, its archive) that reaches `goal`.

    Args:
        model: a Hugging Face folder.
        output: appears only when it is whole.
        settings: how matrices are rounded.
        goal: what the search must reach.
        calibration: UTF-8 text; the model's own samples where None.
        text: what fidelity is measured on; the reference's own samples where None.
        pre: the pre-tokenizer's name where its structure is not known.
        threads: None for all.
        progress: told of each step.

    Raises:
        EdgepackError: as `WireRun` and its searches.
    """
    started = time.monotonic()
    found = read_calibration(model, calibration, settings.device)
    with WireRun(model, output, settings, found, pre=pre, threads=threads, progress=progress) as run:
        wanted = goal.wanted_bytes(run.model.weights)
        if wanted is not None:
            trial = run.reach_size(wanted)
        else:
            trial = run.reach_fidelity(_gate(model, text, goal), 1.0 if goal.min_agreement is not None else 2.0)
        made = run.archive if output.suffix == ".edgepack" else run.gguf
        shutil.move(made, output)
        return WireOutcome(output, trial, len(run.trials), run.model.weights, time.monotonic() - started)


def _gate(model: Path, text: Path | None, goal: Goal) -> Callable[[Path], tuple[bool, float]]:
    """Scores a candidate; its margin is the factor by which its error could grow."""
    from edgepack.pipeline.fidelity import ScoringOptions, run_validation

    options = ScoringOptions(max_chunks=24)

    def passes(candidate: Path) -> tuple[bool, float]:
        statistics = run_validation(model, [candidate], text, options).candidates[0].validation.statistics
        if goal.max_kl is not None:
            margin = goal.max_kl / max(statistics.divergence.interval()[1], 1e-12)
        else:
            allowed = 1 - (goal.min_agreement or 0)
            margin = allowed / max(1 - statistics.agreement.share_interval()[0], 1e-12)
        return margin >= 1, margin

    return passes
