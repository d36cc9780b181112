"""`edgepack run` as scripts call it: one JSON object, stated errors, the right exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from edgepack.cli import execute as run

if TYPE_CHECKING:
    from pathlib import Path

GREEDY = ["--temperature", "0", "--max-tokens", "8", "--threads", "1"]


def test_json_is_one_object_with_the_contracts_keys(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["run", str(tiny), "--prompt", "hello", "--json", *GREEDY]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert {"prompt", "text", "tokens", "tokens_per_second", "load_seconds", "first_token_seconds"} <= set(result)
    assert result["prompt"] == "hello"
    assert 0 < result["tokens"] <= 8
    assert err == ""


def test_stdout_is_the_prompt_and_its_continuation(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["run", str(tiny), "--prompt", "hello", "--json", *GREEDY]) == 0
    text = json.loads(capfd.readouterr().out)["text"]
    assert run(["run", str(tiny), "--prompt", "hello", *GREEDY]) == 0
    out, err = capfd.readouterr()
    assert out == f"hello{text}\n"
    assert "tokens/s" in err


def test_a_prompt_beyond_the_context_is_wrong_usage(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["run", str(tiny), "--prompt", "é" * 400, "--ctx", "256", *GREEDY]) == 2
    assert "the context holds 256" in capfd.readouterr().err


@pytest.mark.parametrize(("name", "said"), [("absent.gguf", "no such file"), (".", "a folder")])
def test_a_file_that_is_not_there_is_wrong_usage(
    tmp_path: Path, name: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["run", str(tmp_path / name), "--prompt", "x"]) == 2
    assert said in capfd.readouterr().err


def test_a_gguf_truncated_anywhere_is_refused(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    raw = tiny.read_bytes()
    for length in (0, 3, 20, 500, len(raw) // 2, len(raw) - 1):
        path = tmp_path / "cut.gguf"
        path.write_bytes(raw[:length])
        assert run(["run", str(path), "--prompt", "x"]) == 6
        assert "error:" in capfd.readouterr().err
