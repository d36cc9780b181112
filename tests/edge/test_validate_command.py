"""`edgepack validate` on the bundled model: a faithful file passes, broken ones fail and say where."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from edgepack.cli import execute as run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(books: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundled model as f32.gguf and q4km.gguf."""
    folder = tmp_path_factory.mktemp("exported")
    for target in ("f32", "q4km"):
        assert run(["export", str(books), "--target", f"gguf-{target}", "-o", str(folder / f"{target}.gguf")]) == 0
    return folder


@pytest.fixture(scope="module")
def text(exported: Path, eval_text: str) -> Path:
    """A few thousand unseen tokens as a file."""
    path = exported / "eval.txt"
    path.write_text(eval_text[:20_000], encoding="utf-8")
    return path


def validated(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    capfd.readouterr()
    code = run(["validate", *map(str, arguments), "--json"])
    out, err = capfd.readouterr()
    return code, json.loads(out) if out else {}, err


def test_an_exact_conversion_agrees_with_transformers(
    exported: Path, text: Path, books: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, told, err = validated(
        capfd, exported / "f32.gguf", "--reference", books, "--text", text, "--min-agreement", "0.99"
    )
    assert code == 0
    assert err == ""  # nothing of llama.cpp's or transformers' own reaches the terminal
    assert told["passed"] is True
    assert told["tokens"] > 2000
    assert told["top1_agreement"] >= 0.999
    assert told["mean_kl"] < 1e-5
    assert told["perplexity"]["candidate"] == pytest.approx(told["perplexity"]["reference"], rel=1e-4)


def test_a_missed_gate_exits_with_1_and_names_the_gate(
    exported: Path, text: Path, books: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, told, err = validated(
        capfd, exported / "q4km.gguf", "--reference", books, "--text", text, "--min-agreement", "0.95", "--no-suggest"
    )
    assert code == 1
    assert told["passed"] is False
    assert 0.88 < told["top1_agreement"] < 0.95
    assert "FAILED min-agreement" in err
    assert "must be at least 0.95" in err


def test_a_gguf_can_be_the_reference(exported: Path, text: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, told, _err = validated(
        capfd, exported / "f32.gguf", "--reference", exported / "f32.gguf", "--text", text, "--ctx", "64"
    )
    assert code == 0
    assert told["top1_agreement"] == 1
    assert told["mean_kl"] <= 1e-6


def test_bad_input_is_one_line_with_its_exit_code(
    exported: Path, books: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"ab\xff")
    good = [exported / "f32.gguf", "--reference", books]
    for arguments, message in (
        ([*good, "--text", short, "--ctx", "64"], "a chunk needs 64"),
        ([*good, "--text", binary], "byte 2"),
        ([*good, "--text", tmp_path / "absent.txt"], "cannot be read"),
        ([tmp_path / "absent.gguf", "--reference", books, "--text", short], "no such file"),
        ([exported / "f32.gguf", "--reference", tmp_path / "absent", "--text", short], "no such file or folder"),
        ([*good, "--text", short, "--min-agreement", "2"], "at most 1"),
        ([*good, "--text", short, "--ctx", "2048"], "its context is 1024"),
    ):
        code, told, err = validated(capfd, *arguments)
        assert (code, told) == (2, {})
        assert message in err
        assert err.count("\n") == 1
