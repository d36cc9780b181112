"""`edgepack.frontier`: one table a model, divergence against bytes; the study is `pipeline.frontier`'s."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.api.opening import ignore
from edgepack.api.values import FilePath, paths
from edgepack.edge.fidelity.scoring import ScoringOptions
from edgepack.edge.fit.devices import find_device
from edgepack.errors import UsageError
from edgepack.pipeline.frontier.catalogue import catalogue, chosen
from edgepack.pipeline.frontier.report import write_report
from edgepack.pipeline.frontier.request import DEVICES, GOAL, SEQUENCES, StudyRequest
from edgepack.pipeline.frontier.study import Study
from edgepack.pipeline.located import opened_place
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgepack.pipeline.frontier.forecast import Forecast
    from edgepack.pipeline.frontier.found import Frontier
    from edgepack.progress import Progress


def frontier(
    model: FilePath,
    calibration: FilePath,
    texts: FilePath | Sequence[FilePath],
    output: FilePath,
    *,
    points: str = "",
    devices: Sequence[str] = DEVICES,
    goal: float = GOAL,
    sequences: int = SEQUENCES,
    length: int | None = None,
    ctx: int | None = None,
    chunks: int | None = None,
    threads: int | None = None,
    scoring: ScoringOptions | None = None,
    device: str = "cpu",
    cluster: str | None = None,
    keep_files: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
    tell: Callable[[str], object] = ignore,
) -> Frontier | Forecast:
    """Make a model in llama.cpp's types and in edgepack's, measure every file, and write the table into a folder.

    The folder gets `frontier.json`, `frontier.svg` and `frontier.html`. The original is run once a text; each file is
    made, packed, scored and removed.

    Args:
        model: a Hugging Face folder, a GGUF, or a URL of fsspec's of such a folder (`s3://…`), as text.
        calibration: the text that files are calibrated with.
        texts: what is scored, one file or several; none of it should be in the calibration text.
        output: the folder, not there or empty.
        points: which files, as expressions of their ids (`importance,wire-q8/Q4_K_M`); all by default.
        devices: profiles whose budgets are told.
        goal: the share of equal first choices that a file should keep.
        sequences: pieces of the calibration text, for every method.
        length: tokens of a piece.
        ctx: tokens in a scored chunk.
        chunks: score only the first so many of each text.
        threads: cores in all.
        scoring: everything else about how text is scored.
        device: torch device of calibration.
        cluster: the Ray cluster whose nodes make the files, for the same bytes: `auto`, or `HOST:PORT` of its head;
            packing and scoring stay here.
        keep_files: keep what was made, in the folder's `files`.
        resume: go on with an interrupted study, or add points to a finished one.
        dry_run: only say how long it would take.
        progress: told of every stretch of work.
        tell: told a line for each point, and first how long it will take.

    Returns:
        The frontier, or with `dry_run` the forecast.

    Raises:
        UsageError: a text that is not there or too short, no such point or device, a folder that is not empty, a study
            that is another's.
        CheckFailedError: no point could be made.
        EdgepackError: whatever opening or scoring finds wrong; what is done stays for `resume`.
    """
    chosen_scoring = scoring or ScoringOptions()
    chosen_scoring = replace(
        chosen_scoring, ctx=chosen_scoring.ctx if ctx is None else ctx,
        max_chunks=chosen_scoring.max_chunks if chunks is None else chunks, threads=threads or chosen_scoring.threads,
    )  # fmt: skip
    if not 0 < goal <= 1:
        raise UsageError(f"goal: expected more than 0 and at most 1, got {goal}")
    for name in devices:
        find_device(name)
    listed = [texts] if isinstance(texts, (str, PathLike)) else texts
    with opened_place(model, None if dry_run else Path(output)) as (folder, located):
        request = StudyRequest(
            folder, Path(calibration), tuple(paths(listed)), Path(output), devices=tuple(devices),
            sequences=sequences, length=length, scoring=chosen_scoring, goal=goal, keep_files=keep_files, resume=resume,
            device=device, cluster=cluster, located=located, progress=progress, tell=tell,
        )  # fmt: skip
        study = Study(request, chosen(catalogue(), points), write=write_report)
        return study.forecast() if dry_run else study.run()
