"""Which larger type would have cleared a gate that a file missed: what `validate` tells beside its verdict."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgepack.pipeline.goals.judging import Judge
from edgepack.pipeline.goals.ladder import climb
from edgepack.pipeline.makers.gguf import open_gguf
from edgepack.pipeline.request import ExportRequest
from edgepack.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.edge.fidelity.scoring import ScoringOptions
    from edgepack.edge.fidelity.validate import Gates


def larger_target_that_passes(
    least_bytes: int,
    model: Path,
    text: Path | None,
    gates: Gates,
    options: ScoringOptions,
    tell: Callable[[str], object] = lambda _line: None,
    progress: Progress = silent,
) -> str:
    """The smallest target of more than `least_bytes` whose file clears the gates; its file is thrown away.

    Args:
        least_bytes: of the file that missed.
        model: the original.
        text: what is scored; None for the original's own samples.
        gates: at least one bar.
        options: how text is scored.
        tell: told one line a try.
        progress: of exports and scoring.

    Raises:
        CheckFailedError: none passes, or there is none that is larger.
    """
    maker = open_gguf(ExportRequest(model, progress=progress), None)
    larger = [target for target in reversed(maker.ladder) if maker.outline(target).bytes > least_bytes]
    with TemporaryDirectory(prefix="edgepack-") as folder, Judge(model, gates, text, options) as judge:
        tried, _made = climb(maker, larger, judge, Path(folder), tell)
        return tried[-1].target
