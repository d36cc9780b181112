"""What is decided beside a recipe, and what a recipe gives. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.crew import Crew
    from edgepack.export.mapped import MappedModel
    from edgepack.export.plan import ExportPlan
    from edgepack.export.recipe.pass_stages import PassStages
    from edgepack.model import Checkpoint
    from edgepack.progress import Progress
    from edgepack.quant.calibration.collect import Calibration
    from edgepack.quant.passes.recipe import PassStep
    from edgepack.quant.passes.run import Figure
    from edgepack.quant.types.choice import Overrides


@dataclass(frozen=True)
class RecipeOptions:
    """What the user decides beside recipe and target.

    Attributes:
        folder: scratch space; it must live until the plan is written.
        overrides: types chosen by hand; None for none.
        pre: the pre-tokenizer's name where its structure is not known.
        device: a torch device for the passes.
        batch: calibration sequences at a time.
        tokens: calibration tokens [sequences, length] that are known already, in place of the recipe's.
        resumable: whether the folder stays after a kill: then what is done is kept in it.
        factors: where low-rank factors are stored, or read from; None for neither.
        save_calibration: a `.safetensors` file for the statistics, which makes calibration resumable; or None.
        stages: where finished passes are kept for another run; None where they are not.
        progress: told of each block done.
        crew: who runs what can be split; None for this process.
    """

    folder: Path
    overrides: Overrides | None = None
    pre: str | None = None
    device: str = "cpu"
    batch: int = 8
    tokens: NDArray[np.int64] | None = None
    resumable: bool = False
    factors: Path | None = None
    save_calibration: Path | None = None
    stages: PassStages | None = None
    progress: Progress = silent
    crew: Crew | None = None


@dataclass(frozen=True)
class PreparedExport:
    """What a recipe gives: a plan to write, and what happened.

    Attributes:
        plan: of the file; its metadata tells the recipe and the figures.
        reference: the changed model under GGUF names before any pass rounded it for the file; what corrections are
            measured against.
        checkpoint: the changed model.
        calibration: statistics of the changed model, or None where nothing needed them.
        figures: for each pass, by its number: name and figures.
        notes: a line each on what was skipped and why.
        low_rank: checkpoint name → (left, right) to be added at run time by an adapter.
        corrections: the recipe's steps that correct the finished file.
    """

    plan: ExportPlan
    reference: MappedModel
    checkpoint: Checkpoint
    calibration: Calibration | None
    figures: tuple[Mapping[str, Figure], ...]
    notes: tuple[str, ...]
    low_rank: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=dict)
    corrections: tuple[PassStep, ...] = ()
