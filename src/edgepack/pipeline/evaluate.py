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
from edgepack.edge.fidelity.tasks.tasks import Comparison, read_items
from edgepack.errors import DependencyError
from edgepack.pipeline.fidelity import open_reference
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.edge.fidelity.scorers.scorer import Scorer
    from edgepack.edge.fidelity.scoring import ScoringOptions
    from edgepack.progress import Progress


def evaluate(
    candidate_path: Path,
    reference_path: Path,
    tasks: Sequence[str],
    options: ScoringOptions,
    limit: int | None = None,
    progress: Progress = silent,
) -> dict[str, dict[str, Comparison]]:
    """Both models on every task.

    Args:
        candidate_path: a GGUF or an `.edgepack`.
        reference_path: the original.
        tasks: paths of JSONL files, or names of lm-evaluation-harness tasks.
        options: threads and the longest item.
        limit: only the first items of each.
        progress: told of items.

    Returns:
        task → measure → both models compared.

    Raises:
        UsageError: a file of items is not one.
        DependencyError: a task's name, and lm-evaluation-harness is not installed.
    """
    local = {task: read_items(Path(task))[:limit] for task in tasks if Path(task).suffix == ".jsonl"}
    named = [task for task in tasks if task not in local]
    if named:
        _check_harness(named)
    with (
        closing(open_candidate(candidate_path, options, progress=progress)) as candidate,
        closing(open_reference(reference_path, options)) as reference,
    ):
        found = {Path(task).stem: run_task(items, reference, candidate, progress).measures
                 for task, items in local.items()}  # fmt: skip
        return found | _run_harness(named, reference, candidate, limit)


def _check_harness(named: list[str]) -> None:
    if find_spec("lm_eval") is None:
        raise DependencyError(
            f"task '{named[0]}': expected a .jsonl file, or lm-evaluation-harness: pip install 'edgepack[eval]'"
        )


def _run_harness(
    named: list[str], reference: Scorer, candidate: Scorer, limit: int | None
) -> dict[str, dict[str, Comparison]]:
    if not named:
        return {}
    from edgepack.edge.fidelity.tasks.harness import run_harness

    return run_harness(named, reference, candidate, limit)
