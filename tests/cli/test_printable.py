"""Nothing that a file or a model says steers the terminal."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from tiny_models import Shape, write_random

from edgepack.cli import execute
from edgepack.cli.output import note, print_json, say
from edgepack.cli.printable import printable

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

CLEAR = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e"


@given(st.text())
def test_no_control_character_is_left_and_nothing_else_is_changed(text: str) -> None:
    shown = printable(text)
    assert not [c for c in shown if (ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160 or c in "\u202e\u2066"]
    harmless = "".join(c for c in text if c.isprintable())
    assert printable(harmless) == harmless


def test_messages_are_printable_and_json_keeps_its_content(capsys: pytest.CaptureFixture[str]) -> None:
    note(CLEAR)
    print_json({"name": CLEAR})
    out, err = capsys.readouterr()
    assert "␛[2J" in err
    assert not set(CLEAR) & set("\x1b\x07\x9b\u202e") & set(out + err)
    assert json.loads(out)["name"] == CLEAR


def test_answers_are_printable_on_a_terminal_and_as_they_are_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say(CLEAR, nl=False)
    assert "\x1b]0;title\x07" in capsys.readouterr().out  # click takes colours out of pipes, nothing else
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    say(CLEAR, nl=False)
    assert "\x1b" not in capsys.readouterr().out


def test_an_error_that_names_a_hostile_tensor_is_printable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_random(tmp_path / "x.gguf", Shape(layers=1))
    raw, name = model.read_bytes(), b"blk.0.attn_q.weight"
    hostile = raw.replace(name, b"\x1b[2J\x1b]0;x\x07.weight"[: len(name)].ljust(len(name), b"x"))
    model.write_bytes(hostile)
    assert (
        execute(
            ["export", str(model), "--target", "gguf-q4km", "--tensor-type", "\x1b(=q8_0", "-o", str(tmp_path / "y")]
        )
        != 0
    )
    assert execute(["extract", str(model), "\x1b[2J", "-o", str(tmp_path)]) != 0
    assert "\x1b" not in capsys.readouterr().err
