"""`edgepack reproduce`: the same bytes from the same inputs, and the first thing that differs where they are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import edgepack
from edgepack.cli import execute
from edgepack.gguf.reader import read_header
from edgepack.packaging.derivation import beside_path

PASSAGES = (Path(__file__).resolve().parents[2] / "tools/text/passages.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(PASSAGES)
    return path


@pytest.fixture(scope="module")
def gguf(stories: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an importance matrix, and its derivation beside it."""
    path = tmp_path_factory.mktemp("made") / "m.gguf"
    edgepack.export(
        stories, target="gguf-q4km", calibration=text, quantizer="ggml", sequences=2, output=path, provenance=True,
        threads=1,
    )  # fmt: skip
    return path


def reproduce(file: Path, model: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, object]]:
    code = execute(
        ["reproduce", str(file), "--model", str(model), "--calibration", str(text), "--threads", "1", "--json"]
    )
    return code, json.loads(capsys.readouterr().out)


def test_the_same_inputs_under_other_names_give_the_same_bytes(
    gguf: Path, stories: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(stories, tmp_path / "copy", copy_function=shutil.copy)
    other = shutil.copy(text, tmp_path / "other.txt")
    code, told = reproduce(gguf, model, other, capsys)
    assert code == 0
    assert told["equal"]
    assert told["first_difference"] is None
    assert told["sha256"] == told["recomputed"]


def test_another_text_is_named_by_its_digest_and_nothing_is_made(
    gguf: Path, stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "words.txt"
    other.write_text(PASSAGES[1:])
    monkeypatch.setattr("edgepack.pipeline.rederive.run_export", lambda _request: pytest.fail("made"))
    code, told = reproduce(gguf, stories, other, capsys)
    assert code == 1
    assert told["first_difference"] == "input words.txt (calibration): has other bytes"
    assert execute(["reproduce", str(gguf), "--model", str(stories), "--calibration", str(other)]) == 1
    assert "FAILED: input words.txt (calibration)" in capsys.readouterr().err


def test_a_changed_tensor_of_the_file_is_named(
    gguf: Path, stories: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = tmp_path / "m.gguf"
    header, raw = read_header(gguf), bytearray(gguf.read_bytes())
    raw[header.data_start + header.tensors[3].offset] ^= 1
    changed.write_bytes(raw)
    shutil.copy(beside_path(gguf), beside_path(changed))
    code, told = reproduce(changed, stories, text, capsys)
    assert code == 1
    assert not told["equal"]
    assert str(told["first_difference"]).startswith(f"tensor '{header.tensors[3].name}'")


def test_a_wire_and_a_coded_file_come_again_too(
    stories: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wire, coded = tmp_path / "w.edgepack", tmp_path / "c.edgepack"
    edgepack.export(stories, target="wire", bits=6.5, calibration=text, sequences=2, length=32, output=wire, threads=1)
    edgepack.export(stories, target="edge-nf4", output=coded, threads=1)
    assert reproduce(wire, stories, text, capsys)[0] == 0
    assert execute(["reproduce", str(coded), "--model", str(stories), "--threads", "1"]) == 0


@pytest.mark.parametrize(
    ("change", "code"), [("no file", 2), ("no model", 2), ("no calibration", 2), ("no derivation", 2)]
)
def test_what_is_missing_is_wrong_usage(
    change: str, code: int, gguf: Path, stories: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, model = gguf, stories
    if change == "no file":
        file = tmp_path / "absent.gguf"
    elif change == "no model":
        model = tmp_path / "absent"
    elif change == "no derivation":
        file = shutil.copy(gguf, tmp_path / "alone.gguf")
    line = ["reproduce", str(file), "--model", str(model)]
    assert execute(line if change == "no calibration" else [*line, "--calibration", str(text)]) == code
    assert len(capsys.readouterr().err.splitlines()) == 1
