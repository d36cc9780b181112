"""Exports that must say what the original says: the smallest target that clears the gates, or a verdict at the end.

Making files is `pipeline.export`'s, judging them `pipeline.ladder`'s and `pipeline.fidelity`'s.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.export.gguf_file import write_gguf
from edgepack.export.naming import file_name
from edgepack.export.plan import plan_export
from edgepack.packaging.pack import pack_archive
from edgepack.pipeline.export import LADDER, PreparedExport, open_source
from edgepack.pipeline.ladder import climb
from edgepack.progress import Progress, silent
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.edge.fidelity.validate import Gates
    from edgepack.export.plan import ExportPlan
    from edgepack.pipeline.export import ExportRequest
    from edgepack.pipeline.fidelity import ScoringOptions
    from edgepack.pipeline.ladder import Ladder


def export_smallest(
    request: ExportRequest,
    gates: Gates,
    text: Path | None,
    scoring: ScoringOptions,
    *,
    tell: Callable[[str], object] = lambda _line: None,
    progress: Progress = silent,
) -> tuple[PreparedExport, Ladder]:
    """Try the ladder of types from small to large; the first that clears `gates` is what is shipped.

    Args:
        request: without a target; `pack` ships it as an archive.
        gates: at least one bar.
        text: what is scored; None for the reference's own samples.
        scoring: how.
        tell: told one line for each type that was tried.
        progress: of exports and scoring.

    Returns:
        What was written, and all that was tried.

    Raises:
        CheckFailedError: no type clears the gates; nothing is written.
        UsageError: sizes together with gates, or a source that cannot be its own reference.
    """
    _refuse_contradictions(request)
    mapped, options = open_source(request, progress)
    plans = {target.name: plan_export(mapped, target, options) for target in LADDER}
    rungs = sorted({plan.total_bytes: name for name, plan in plans.items()}.items())

    def make(name: str, path: Path) -> tuple[Path, ...]:
        write_gguf(plans[find_target(name).name], path, threads=request.threads, progress=progress)
        return ()

    folder = request.output.parent if request.output else Path()
    with tempfile.TemporaryDirectory(prefix=".edgepack-", dir=folder) as scratch:
        ladder = climb(
            request.model, [(name, size) for size, name in rungs], gates, text, scoring, Path(scratch),
            make=make, tell=tell, progress=progress,
        )  # fmt: skip
        plan = plans[ladder.tried[-1].target]
        path = _ship(request, plan, ladder.path, progress)
    decided = replace(request, target=plan.target)
    return PreparedExport(decided, mapped, plan, path, options), replace(ladder, path=path)


def _refuse_contradictions(request: ExportRequest) -> None:
    refuse_size_with_gates(request.max_bytes or request.shard_bytes)
    if not request.model.is_dir():
        raise UsageError(f"model '{request.model}': expected a Hugging Face folder to hold candidates against")


def refuse_size_with_gates(size: int | None) -> None:
    """Raise UsageError where a size is given beside gates that choose the target."""
    if size is not None:
        raise UsageError("--min-agreement and its like choose the target: expected no --max-size or --shard-size")


def _ship(request: ExportRequest, plan: ExportPlan, made: Path, progress: Progress) -> Path:
    """Move the file that passed to its final name, or pack it there."""
    name = file_name(plan.metadata, plan.target.label)
    path = request.output or Path(name if not request.pack else f"{Path(name).stem}.edgepack")
    if request.pack:
        pack_archive(made, path, threads=request.threads, progress=progress)
    else:
        made.replace(path)
    return path
