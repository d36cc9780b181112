"""`edgepack prune-grid`: what it prints, what it picks, and that its figures are those of the export it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgepack.cli import execute
from edgepack.errors import CheckFailedError, UsageError

if TYPE_CHECKING:
    from typing import Any

BOOKS = Path(__file__).resolve().parents[1] / "data/books-llama-6m"
TEXT = "The captain looked over the sea and said that no ship would come before the morning. " * 60


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def grid(text: Path, *more: str) -> list[str]:
    options = ["--calibration", str(text), "--text", str(text), "--chunks", "1", "--ctx", "64", "--threads", "1"]
    return ["prune-grid", str(BOOKS), "--method", "magnitude", *options, *more]


@pytest.fixture
def measured(text: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    code = execute(grid(text, "--sparsity", "0.8,0.1,0.8", "--min-agreement", "0.5", "--json"))
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def test_each_level_is_measured_once_and_the_smallest_that_agrees_is_picked(
    measured: tuple[int, dict[str, Any], str],
) -> None:
    code, found, said = measured
    low, high = found["levels"]
    assert code == 0
    assert (low["sparsity"], high["sparsity"]) == (0.1, 0.8)
    assert high["archive_bytes"] < low["archive_bytes"]
    assert high["perplexity"] > low["perplexity"]
    assert high["top1_agreement"] < 0.5 <= low["top1_agreement"]
    assert found["chosen"] == low
    assert "--pass prune:method=magnitude,sparsity=0.1" in said


def test_the_command_that_is_named_makes_the_archive_that_was_measured(
    measured: tuple[int, dict[str, Any], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = measured[2].splitlines()[-1].split()
    out = tmp_path / "m.edgepack"
    assert words[:2] == ["edgepack", "export"]
    assert execute([*words[1:], "-o", str(out), "--json"]) == 0
    # An archive names its member (the measured one was called model.gguf) and says what it was made from.
    assert -64 < out.stat().st_size - measured[1]["chosen"]["archive_bytes"] < 2048
    capsys.readouterr()


def test_a_table_is_for_people_and_a_missed_bar_exits_with_1(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(grid(text, "--sparsity", "0.9", "--min-agreement", "0.99")) == CheckFailedError.exit_code
    captured = capsys.readouterr()
    header, line = captured.out.splitlines()
    assert header.split() == ["sparsity", "perplexity", "agreement", "archive", "bytes"]
    assert line.split()[0] == "0.9"
    assert "FAILED prune grid: expected an agreement of 0.99 or more, the best is" in captured.err


def test_each_level_is_measured_without_and_with_recovery(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text.write_text(TEXT * 3)
    options = ["--sparsity", "0.6", "--recover", "2", "--every", "1", "--batch", "1", "--rate", "1e-5"]
    assert execute(grid(text, *options, "--min-agreement", "0", "--json")) == 0
    captured = capsys.readouterr()
    once, recovered = json.loads(captured.out)["levels"]
    assert (once["steps"], recovered["steps"]) == (0, 2)
    assert once["perplexity"] != recovered["perplexity"]
    assert abs(recovered["archive_bytes"] / once["archive_bytes"] - 1) < 0.02  # as many zeros
    found = "picked 0.6 with 2 steps of recovery" in captured.err
    assert found == (recovered["archive_bytes"] < once["archive_bytes"])
    assert execute(grid(text, *options, "--dry-run")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["schedule=cubic,steps=2,every=1,batch=1,rate=1e-05" in line for line in lines] == [False, True]


def test_a_dry_run_says_what_would_be_measured_and_prunes_nothing(
    text: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert execute(grid(text, "--sparsity", "0.5,0.6", "--dry-run", "--json")) == 0
    levels = json.loads(capsys.readouterr().out)["levels"]
    assert [level["sparsity"] for level in levels] == [0.5, 0.6]
    out = tmp_path / "m.gguf"
    export = ["export", str(BOOKS), "--target", "gguf-q8", "--pass", "prune:sparsity=0.5", "-o", str(out), "--json"]
    assert execute([*export, "--dry-run"]) == 0
    assert levels[0]["gguf_bytes"] == pytest.approx(json.loads(capsys.readouterr().out)["bytes"], abs=512)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sparsity", "half"], "--sparsity: expected numbers such as 0.6,0.65,0.7, got 'half'"),
        (["--sparsity", "1.0"], "expected sparsities from 0 to 1 (not included)"),
        (["--sparsity", "0.5", "--target", "edge-seedlm4"], "edge-seedlm4"),
        (["--sparsity", "0.5", "--every", "3"], "--every: belongs to --recover, which is not given"),
        (["--sparsity", "0.5", "--recover", "3", "--every", "4"], "every: expected at most the 3 steps of the run"),
        (["--sparsity", "0.5", "--recover", "3", "--rate", "7"], "rate: expected 1e-09 to 1"),
        (["--sparsity", "0.5", "--recover", "3", "--max-memory", "lots"], "max_memory: size 'lots'"),
        (["--sparsity", "0.5", "--target", "wire"], "wire"),
    ],
)
def test_wrong_usage_is_one_line(
    options: list[str], message: str, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(grid(text, *options)) == UsageError.exit_code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
