"""The passes of a recipe as stages: each keeps its outcome under a digest of its inputs, and somebody is told of it.

What is on disk is `export.recipe.kept_outcomes`', what is checked after a stage `pipeline.stages`'.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.export.recipe.kept_outcomes import KeptOutcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgepack.model import Checkpoint
    from edgepack.quant.passes.recipe import PassStep
    from edgepack.quant.passes.run import PassOutcome


@dataclass(frozen=True)
class FinishedPass:
    """A pass that was done now, or on an earlier run.

    Attributes:
        number: in the recipe, from 0.
        step: the pass and its settings.
        outcome: what it gave.
        key: digest of its inputs.
        folder: where it is kept.
        seconds: wall time of the pass; 0 where it was skipped.
        skipped: whether an earlier run had done it.
    """

    number: int
    step: PassStep
    outcome: PassOutcome
    key: str
    folder: Path
    seconds: float
    skipped: bool


@dataclass(frozen=True)
class PassStages:
    """Where passes keep what they did, and who hears of it.

    Attributes:
        folder: of all stages; it outlives the run.
        key: digest of everything that all passes depend on: model, calibration, device, versions.
        began: told the number and the name of a pass before it is looked for.
        finished: told of each pass, skipped ones too; what it raises ends the run.
    """

    folder: Path
    key: str
    began: Callable[[int, str], object]
    finished: Callable[[FinishedPass], object]

    def tokens_file(self, name: str, key: str) -> Path:
        """Where the tokens `name` lie that were chosen from the model with this key."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{name}-{key[:16]}.npy"

    def calibration_folder(self, key: str) -> Path:
        """Where the statistics of the model with this key lie."""
        return self.folder / f"calibration-{key[:16]}"

    def run(
        self, number: int, step: PassStep, key: str, before: Checkpoint, work: Callable[[Path], PassOutcome]
    ) -> PassOutcome:
        """What a pass gives: of an earlier run with the same inputs, or done now and kept.

        Args:
            number: of the pass, from 0.
            step: the pass.
            key: digest of its inputs.
            before: the model that it is given.
            work: does it, in the scratch folder that it is given.
        """
        self.began(number, step.name)
        kept = KeptOutcome(self.folder / f"pass-{number}-{step.name}-{key[:16]}")
        outcome, began = kept.read(before), time.monotonic()
        skipped = outcome is not None
        if outcome is None:
            outcome = kept.keep(work(kept.work), before)
        seconds = 0.0 if skipped else time.monotonic() - began
        self.finished(FinishedPass(number, step, outcome, key, kept.folder, seconds, skipped))
        return outcome


def following_key(key: str, *inputs: object) -> str:
    """The key of what is made of `inputs` and of what has `key`."""
    return hashlib.sha256("\n".join([key, *map(repr, inputs)]).encode()).hexdigest()
