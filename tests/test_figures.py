"""The documents' tables are the kept figures, and what a bench prints is what it keeps."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

import bench_kv_plot
import figure_file
import figures
import pytest
from figure_file import Figure, Machine

if TYPE_CHECKING:
    from pathlib import Path

ALL = figure_file.all_figures()
FIGURE = Figure("one", ("a", "b"), (("1", ""), ("2", r"x \| y")), "abc1234", "2026-11-28", "python tools/bench_fit.py")


def test_rendering_again_changes_no_document() -> None:
    """`make figures` renders."""
    changed = [str(path) for path in figures.render(write=False)]
    assert changed == [], "run: make figures"


def test_every_figure_is_shown_and_in_no_document_twice() -> None:
    shown = [figures.figures_in(path.read_text(encoding="utf-8")) for path in figures.documents()]
    assert set().union(*shown) == set(ALL)
    assert all(len(set(names)) == len(names) for names in shown)


def test_the_plot_of_caches_is_drawn_of_the_figures() -> None:
    kept = (figure_file.ROOT / "docs/kv-cache.svg").read_text(encoding="utf-8")
    assert bench_kv_plot.drawn(bench_kv_plot.all_points()) == kept, "python tools/bench_kv_plot.py docs/kv-cache.svg"


@pytest.mark.parametrize("name", ALL)
def test_a_figure_can_be_measured_again(name: str) -> None:
    command = figures.command_of(name, ALL)
    assert (figure_file.ROOT / command[1]).is_file()
    assert name in command[-1].split(",")
    assert command[-1].split(",")[ALL[name].table] == name


@pytest.mark.parametrize("name", ALL)
def test_a_figure_says_which_commit_measured_it_and_when(name: str) -> None:
    assert re.fullmatch(r"[0-9a-f]{7,40}(\+changes)?", ALL[name].commit)
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", ALL[name].date)
    assert ALL[name].commit in figures.rendered(ALL[name])


def test_no_measured_numbers_stand_outside_of_figures() -> None:
    for path in figures.documents():
        found = figures.loose_tables(path.read_text(encoding="utf-8"))
        assert found == [], f"{path.name}: a table of numbers that no figure holds"


def test_a_table_of_numbers_without_a_marker_is_noticed() -> None:
    table = "| | KL |\n|---|---|\n| 3.5 MB | .0012 |\n"
    assert figures.loose_tables(f"text\n\n{table}") == [[["", "KL"], ["3.5 MB", ".0012"]]]
    assert figures.loose_tables(f"<!-- figure one -->\n{table}<!-- /figure -->\n") == []
    assert figures.loose_tables("| option | default |\n|---|---|\n| `--level N` | 10 |\n") == []


def test_a_figure_survives_being_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure_file, "FOLDER", tmp_path)
    figure = Figure(**{**vars(FIGURE), "machine": Machine("cpu", 2, 8), "versions": {"numpy": "2"}})
    figure.write()
    assert figure_file.read_figure(figure.path) == figure
    figure.path.rename(tmp_path / "two.json")
    with pytest.raises(ValueError, match="holds figure 'one'"):
        figure_file.read_figure(tmp_path / "two.json")


def test_rows_have_as_many_cells_as_there_are_columns() -> None:
    with pytest.raises(ValueError, match="expected 2 cells, got 1"):
        Figure("one", ("a", "b"), (("1",),), "abc1234", "2026-11-28", "")


def test_markdown_is_read_as_it_is_rendered() -> None:
    shown = figures.rendered(FIGURE)
    assert figure_file.markdown_tables(shown) == [[list(FIGURE.columns), *map(list, FIGURE.rows)]]


def test_columns_are_read_by_where_their_headings_end() -> None:
    text = (
        "random Llama\n"
        f"{'':<14} {'wall':>10} {'busy':>6} {'disk':>8}\n"
        f"{'f16, then more':<14} {'1 min 2 s':>10} {'97%':>6} {'2.7 GB':>8}\n"
        f"{'ratio':<14} {'0.65':>10} {'':>6} {'0.26':>8}\n"
    )
    assert figure_file.aligned_tables(text) == [
        [["", "wall", "busy", "disk"], ["f16, then more", "1 min 2 s", "97%", "2.7 GB"], ["ratio", "0.65", "", "0.26"]]
    ]


def test_a_bench_keeps_the_tables_that_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figure_file, "FOLDER", tmp_path)
    monkeypatch.setattr(figure_file, "ROOT", tmp_path)
    monkeypatch.setattr(figure_file, "current_commit", lambda: "abc1234+changes")
    script = tmp_path / "tools/bench_some.py"
    script.parent.mkdir()
    script.touch()
    monkeypatch.setattr(sys, "argv", [str(script), "--chunks", "3", "--figure", "-,second"])

    def main() -> int:
        assert sys.argv[1:] == ["--chunks", "3"]
        print("| a |\n|---|\n| 1 |\n\nbetween\n\n| b | c |\n|---|---|\n| 2 | 3 |")
        return 1

    with pytest.raises(SystemExit) as ended:
        figure_file.run_with_figure(main)
    assert ended.value.code == 1
    assert "| 2 | 3 |" in capsys.readouterr().out
    (kept,) = tmp_path.glob("*.json")
    found = json.loads(kept.read_text())
    assert (found["name"], found["columns"], found["rows"]) == ("second", ["b", "c"], [["2", "3"]])
    assert (found["commit"], found["table"]) == ("abc1234+changes", 1)
    assert found["command"] == "python tools/bench_some.py --chunks 3"
    assert found["machine"]["cores"] >= 1
    assert "numpy" in found["versions"]


def test_a_bench_without_the_option_only_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench"])
    with pytest.raises(SystemExit) as ended:
        figure_file.run_with_figure(lambda: None)
    assert ended.value.code is None
