"""What a study is asked for, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgepack.edge.fidelity.scoring import ScoringOptions
from edgepack.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edgepack.pipeline.located import LocatedModel

DEVICES = ("gtx-1660", "rtx-3060", "laptop-8gb")
SEQUENCES = 64
GOAL = 0.95  # of first choices: what "keeps" means where nobody says otherwise


@dataclass(frozen=True)
class StudyRequest:
    """One model, what is made of it, and on which texts that is measured.

    Attributes:
        model: a Hugging Face folder or a GGUF.
        calibration: the text that files are calibrated with.
        texts: what is scored; their names must differ.
        output: the folder that is written.
        calibrations: further calibration texts by name, for specs that ask for them.
        devices: profiles whose budgets are told.
        sequences: pieces of the calibration text: the same for every method, which so share what is measured on them.
        length: tokens of a piece; None likewise.
        scoring: how text is scored.
        goal: the share of equal first choices that a file should keep.
        keep_work: leave what was computed on the way (the original's predictions, curvature) beside the output, for
            studies that add points to it.
        keep_files: keep what was made, in the output's folder `files`.
        resume: go on with what an interrupted study left, or with a finished one's points.
        device: torch device of calibration and passes.
        cluster: whose nodes make the files, as `ExportRequest.cluster`; None for this process.
        located: of a model at a URL, whose small files `model` holds; None reads what lies there.
        progress: told of every stretch of work.
        tell: told a line for each point.
    """

    model: Path
    calibration: Path
    texts: tuple[Path, ...]
    output: Path
    calibrations: Mapping[str, Path] = field(default_factory=dict)
    devices: tuple[str, ...] = DEVICES
    sequences: int = SEQUENCES
    length: int | None = None
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    goal: float = GOAL
    keep_files: bool = False
    keep_work: bool = False
    resume: bool = False
    device: str = "cpu"
    cluster: str | None = None
    located: LocatedModel | None = None
    progress: Progress = silent
    tell: Callable[[str], object] = lambda _line: None

    @property
    def remote(self) -> dict[str, Any]:
        """The fields of an `ExportRequest` that hold a model at a URL; none of any other."""
        found = self.located
        return {} if found is None else {"original": found.checkpoint, "remote": found.weights}
