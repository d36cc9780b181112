"""Texts of the fidelity bench: what a test text shares with a calibration text is found and left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fidelity_text import WORDS, is_tests, mixed, modules, runs, shared_runs, taken

if TYPE_CHECKING:
    from pathlib import Path

LINE = " ".join(f"word{n}" for n in range(WORDS))


def test_twelve_words_in_a_row_are_found_whatever_stands_between_them(tmp_path: Path) -> None:
    (tmp_path / "test").write_text(f"before, {LINE.upper().replace(' ', '; ')} after")
    (tmp_path / "seen").write_text(f"something {LINE} else")
    (tmp_path / "unseen").write_text(LINE.replace("word7 ", "other "))
    assert shared_runs(tmp_path / "test", tmp_path / "seen") == 1
    assert shared_runs(tmp_path / "test", tmp_path / "unseen") == 0


def test_pieces_that_were_seen_or_come_twice_are_left_out_and_the_size_is_held() -> None:
    pieces = [f"{LINE} a", f"a {LINE}", f"first {LINE.replace('word3', 'x')}", "short", "b" * 500]
    assert taken(pieces, 400) == [pieces[0], pieces[2], "short"]
    assert taken(pieces, 400, set(runs(LINE))) == [pieces[2], "short"]


def test_kinds_come_by_turns_and_every_piece_once() -> None:
    assert mixed([["a", "b", "c", "d"], ["x", "y"]]) == ["a", "x", "b", "c", "y", "d"]


def test_a_module_is_either_the_tests_or_calibrations() -> None:
    names = [name for name, _source in modules()]
    tests = sum(map(is_tests, names))
    assert len(set(names)) == len(names) > 100
    assert 0.1 < tests / len(names) < 0.4
