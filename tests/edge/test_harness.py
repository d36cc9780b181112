"""The harness's requests are answered by edgepack's scorers; where it is installed, a whole task of it runs."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from references.scorers_of_arrays import TableScorer

from edgepack.edge.fidelity.tasks.harness import HarnessRequests, run_harness

if TYPE_CHECKING:
    from pathlib import Path


def test_requests_are_scored_and_continued() -> None:
    model = HarnessRequests(TableScorer())
    (best,) = model.generate_until([SimpleNamespace(args=("abc", {"until": [], "max_gen_toks": 3}))])
    assert len(best) == 3
    (value, greedy), (worse, not_greedy) = model.loglikelihood(
        [SimpleNamespace(args=("abc", best)), SimpleNamespace(args=("abc", "\x01\x02\x03"))]
    )
    assert greedy
    assert not not_greedy
    assert worse < value < 0


def test_a_task_of_the_harness_runs_with_both_models(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager  # noqa: F401 - fails where the harness is only half installed

    items = tmp_path / "items.jsonl"
    rows = [{"query": f"abc{n}", "choices": ["def", "xyz"], "gold": n % 2} for n in range(6)]
    items.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = {
        "task": "letters", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(items)}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{query}}",
        "doc_to_target": "{{gold}}", "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }  # fmt: skip
    found = run_harness([config], TableScorer(), TableScorer(noise=0.1))
    assert found["letters"]["acc"].items == 6
    same = run_harness([config], TableScorer(), TableScorer())
    assert same["letters"]["acc"].p_value == 1.0
