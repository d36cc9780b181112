"""`export` with gates: the gate as the input, and the verdict at the end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from edgepack.cli import execute as run

if TYPE_CHECKING:
    from pathlib import Path

TEXT = ["--text", "tests/data/own-words.txt", "--chunks", "12"]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.chdir(request.config.rootpath)


@pytest.mark.slow
def test_the_smallest_type_that_clears_the_gate_is_kept(
    books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.gguf"
    assert run(["export", str(books), "--max-kl", "0.03", "-o", str(path), *TEXT, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [rung["passed"] for rung in result["tried"]] == [False] * (len(result["tried"]) - 1) + [True]
    assert len(result["tried"]) > 1
    assert result["tried"][-1]["target"] == result["target"]
    assert result["tried"][-1]["mean_kl"] < 0.03
    assert path.stat().st_size == result["bytes"] == result["tried"][-1]["bytes"]
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


@pytest.mark.slow
def test_a_missed_gate_exits_with_one_and_keeps_the_file_that_was_asked_for(
    books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.gguf"
    arguments = ["export", str(books), "--target", "q4km", "--min-agreement", "0.95", "-o", str(path), *TEXT]
    assert run(arguments) == 1
    assert "FAILED min-agreement" in capsys.readouterr().err
    assert path.exists()


def test_gates_and_sizes_contradict_each_other(books: Path, tmp_path: Path) -> None:
    arguments = ["export", str(books), "--min-agreement", "0.9", "--max-size", "3MB", "-o", str(tmp_path / "x.gguf")]
    assert run(arguments) == 2
    assert list(tmp_path.iterdir()) == []
