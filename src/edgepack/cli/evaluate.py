"""`edgepack evaluate`: tasks with right answers, the original and the file side by side."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import json_option, note, print_json, say, terminal_progress
from edgepack.cli.place import Place
from edgepack.cli.scoring_options import threads_option
from edgepack.cli.trust_options import trust_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.edge.fidelity.tasks.tasks import Comparison
    from edgepack.packaging.trust.policy import TrustPolicy

_PATH = click.Path(path_type=Path)


@click.command("evaluate")
@click.argument("candidate", type=_PATH)
@click.option(
    "--reference", type=Place(), required=True, help="The original: a Hugging Face folder, its URL, or a GGUF."
)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    required=True,
    metavar="JSONL|NAME",
    help="A file of items, hellaswag (a small set of that form that ships with edgepack), or a task of"
    " lm-evaluation-harness where that is installed (harness:hellaswag for its own); repeatable.",
)
@click.option("--limit", type=click.IntRange(1), help="Only the first N items.")
@click.option("--ctx", type=click.IntRange(8), default=512, show_default=True, help="The longest item, in tokens.")
@threads_option
@trust_options
@json_option
def command(
    candidate: Path,
    reference: Path | str,
    tasks: tuple[str, ...],
    limit: int | None,
    ctx: int,
    threads: int,
    trusted: TrustPolicy,
    as_json: bool,
) -> None:
    """Answer the same items with CANDIDATE and its original; count flips, judge them by McNemar's test."""
    from edgepack.api.fidelity import evaluate

    found = evaluate(
        candidate, reference, tasks, limit=limit, ctx=ctx, threads=threads, trusted=trusted, progress=terminal_progress
    )
    if as_json:
        items = {task: _items(measures) for task, measures in found.items()}
        print_json({"tasks": {task: _measures(measures) for task, measures in found.items()}, "items": items})
        return
    for task, measures in found.items():
        for measure, compared in measures.items():
            _print(task, measure, compared)


def _measures(measures: Mapping[str, Comparison]) -> dict[str, Any]:
    return {measure: asdict(compared) for measure, compared in measures.items()}


def _items(measures: Mapping[str, Comparison]) -> list[dict[str, Any]]:
    """Each item's answers and perplexities; none of the harness's tasks."""
    return [asdict(item) for item in getattr(measures, "items_in_order", ())]


def _print(task: str, measure: str, compared: Comparison) -> None:
    say(
        f"{task} {measure}: original {100 * compared.reference:.1f} %, file {100 * compared.candidate:.1f} % of "
        f"{compared.items}; {compared.lost} lost, {compared.gained} gained, McNemar p = {compared.p_value:.2g}"
    )
    if compared.p_value < 0.05:
        note(f"{task} {measure}: the two differ by more than chance")
