"""Which larger type would have cleared a gate that a file missed: what `validate` tells beside its verdict."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgepack.pipeline.fidelity import blockwise_scorer
from edgepack.pipeline.goals.judging import Judge
from edgepack.pipeline.goals.ladder import climb
from edgepack.pipeline.makers.gguf import open_gguf
from edgepack.pipeline.makers.located import located_of, with_located
from edgepack.pipeline.request import ExportRequest
from edgepack.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.edge.fidelity.gates import Gates
    from edgepack.edge.fidelity.scoring import ScoringOptions


def larger_target_that_passes(
    least_bytes: int,
    model: Path | str,
    text: Path | None,
    gates: Gates,
    options: ScoringOptions,
    tell: Callable[[str], object] = lambda _line: None,
    progress: Progress = silent,
) -> str:
    """The smallest target of more than `least_bytes` whose file clears the gates; its file is thrown away.

    Args:
        least_bytes: of the file that missed.
        model: the original, or its URL, with `text` then.
        text: what is scored; None for the original's own samples.
        gates: at least one bar.
        options: how text is scored.
        tell: told one line a try.
        progress: of exports and scoring.

    Raises:
        CheckFailedError: none passes, or there is none that is larger.
    """
    with ExitStack() as opened:
        folder = opened.enter_context(TemporaryDirectory(prefix="edgepack-"))
        asked = ExportRequest(model, output=Path(folder, "model.gguf"), progress=progress)
        request = opened.enter_context(with_located(asked))
        maker = open_gguf(request, None)
        larger = [target for target in reversed(maker.ladder) if maker.outline(target).bytes > least_bytes]
        located = located_of(request)
        opener = None if located is None else partial(blockwise_scorer, located.checkpoint, options)
        judge = opened.enter_context(Judge(request.source, gates, text, options, opener=opener))
        tried, _made = climb(maker, larger, judge, Path(folder), tell)
        return tried[-1].target
