"""Opens both models and runs tasks on them: local files by edgepack's own runner, names by lm-evaluation-harness.

What items are is `edge.fidelity.tasks.tasks`' business.
"""

from __future__ import annotations

from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.edge.fidelity.scoring import open_candidate
from edgepack.edge.fidelity.tasks.runner import run_task
from edgepack.edge.fidelity.tasks.tasks import Comparison, MatchItem, own_tasks, read_items
from edgepack.errors import DependencyError, UsageError
from edgepack.files.remote import is_url
from edgepack.pipeline.fidelity import open_original
from edgepack.pipeline.located import opened_place
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepack.edge.fidelity.scorers.scorer import Scorer
    from edgepack.edge.fidelity.scoring import ScoringOptions
    from edgepack.progress import Progress


_HARNESS = "harness:"


def evaluate(
    candidate_path: Path,
    reference: Path | str,
    tasks: Sequence[str],
    options: ScoringOptions,
    limit: int | None = None,
    progress: Progress = silent,
) -> dict[str, Mapping[str, Comparison]]:
    """Both models on every task.

    Args:
        candidate_path: a GGUF or an `.edgepack`.
        reference: the original's path, or its URL as text.
        tasks: paths of JSONL files, names of `own_tasks()`, or names of lm-evaluation-harness tasks (`harness:NAME`
            where a task of our own has that name too).
        options: threads and the longest item.
        limit: only the first items of each.
        progress: told of items.

    Returns:
        task → measure → both models compared; `TaskResult`s where edgepack ran them.

    Raises:
        UsageError: a file of items is not one, or an original at a URL would have to write.
        DependencyError: a task's name, and lm-evaluation-harness is not installed.
    """
    own = own_tasks()
    files = {task: own.get(task, Path(task)) for task in tasks if task in own or Path(task).suffix == ".jsonl"}
    local = {task: read_items(path)[:limit] for task, path in files.items()}
    named = [task.removeprefix(_HARNESS) for task in tasks if task not in local]
    if is_url(reference):
        _check_needs_no_writing(str(reference), local, named)
    if named:
        _check_harness(named)
    with (
        closing(open_candidate(candidate_path, options, progress=progress)) as candidate,
        opened_place(reference, None) as (path, located),
        closing(open_original(path, located, options)) as original,
    ):
        found: dict[str, Mapping[str, Comparison]] = {
            Path(task).stem: run_task(items, original, candidate, progress) for task, items in local.items()
        }
        return {**found, **_run_harness(named, original, candidate, limit)}


def _check_needs_no_writing(url: str, local: Mapping[str, Sequence[object]], named: Sequence[str]) -> None:
    """Refuse tasks for which the original would be read anew for every token that it writes."""
    for task in (*named, *local):
        if task in named or any(isinstance(item, MatchItem) for item in local[task]):
            raise UsageError(
                f"task '{task}': --reference at a URL is read block by block and cannot write: expected a file of "
                f"items with choices, got '{url}'"
            )


def _check_harness(named: list[str]) -> None:
    if find_spec("lm_eval") is None:
        raise DependencyError(
            f"task '{named[0]}': expected a .jsonl file, one of {', '.join(own_tasks())}, or lm-evaluation-harness: "
            "pip install 'edgepack[eval]'"
        )


def _run_harness(
    named: list[str], reference: Scorer, candidate: Scorer, limit: int | None
) -> dict[str, dict[str, Comparison]]:
    if not named:
        return {}
    from edgepack.edge.fidelity.tasks.harness import run_harness

    return run_harness(named, reference, candidate, limit)
