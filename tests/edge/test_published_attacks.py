"""Every kind of file that was published against llama.cpp and its like is refused in one line, by check or by trial."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from attack_bombs import cost_of
from attack_models import HostileFile, hostile_files, model
from tiny_models import Shape, write_random

from edgepack.cli import execute
from edgepack.edge.llama import check, loads
from edgepack.edge.llama.check import read_runnable
from edgepack.edge.llama.loads import ensure_loads
from edgepack.errors import EdgepackError, GGUFError
from edgepack.gguf.reader import read_header
from edgepack.gguf.types import ValueType, array

if TYPE_CHECKING:
    from pathlib import Path

FILES = hostile_files()
KINDS = {
    "CVE-2025-53630", "CVE-2026-27940", "CVE-2025-49847", "CVE-2026-5760", "CVE-2026-7482", "#27188", "#27203",
    "#26318", "#25969", "#25821", "#22234",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGEPACK_PROBE", "on")
    monkeypatch.chdir(tmp_path)


def test_every_published_kind_has_its_files() -> None:
    assert {file.kind for file in FILES} >= KINDS


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.kind} {file.what}")
def test_a_hostile_file_is_refused_in_one_line(
    file: HostileFile, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "hostile.gguf", tmp_path / "out.gguf"
    path.write_bytes(file.content)
    arguments = [{"FILE": str(path), "OUT": str(out)}.get(argument, argument) for argument in file.command]
    try:
        read_runnable(path)
        foreseen = False
    except EdgepackError:
        foreseen = True
    if foreseen:
        code, told = execute(arguments), capfd.readouterr().err
        assert told.count("\n") == 1
    else:  # llama.cpp, Jinja's child or the trial refuses it: should one of them not, this process goes on
        cost = cost_of(arguments, {})
        code, told = cost.code, cost.told
    assert code in (2, 4, 6, 10), told
    assert told.startswith("edgepack: error: ")
    assert not out.exists()
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path / "x").exists()


def test_what_no_check_foresees_ends_a_child_and_not_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "check_vocabulary", lambda _header: None)
    path, tokens = tmp_path / "twice.gguf", read_tokens(tmp_path)
    path.write_bytes(model({"tokenizer.ggml.tokens": array(ValueType.STRING, [*tokens[:-1], tokens[-2]])}))
    with pytest.raises(GGUFError, match=r"does not survive it: SIGABRT GGML_ASSERT"):
        ensure_loads(read_runnable(path))
    with pytest.raises(GGUFError, match="does not survive it"):  # and is not remembered as sound
        ensure_loads(read_runnable(path), path.read_bytes()[: read_header(path).data_start])


def read_tokens(folder: Path) -> list[str]:
    found: list[str] = read_header(write_random(folder / "sound.gguf", Shape())).get("tokenizer.ggml.tokens")
    return found


def test_what_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "_LIMIT_SECONDS", 0.01)
    with pytest.raises(GGUFError, match="does not come to an end"):
        ensure_loads(read_runnable(write_random(tmp_path / "sound.gguf", Shape())))


def test_a_file_is_tried_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_random(tmp_path / "sound.gguf", Shape())
    started: list[object] = []
    original = subprocess.run

    def counting(*arguments: object, **options: object) -> object:
        started.append(arguments)
        return original(*arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("subprocess.run", counting)
    for _ in range(2):
        ensure_loads(read_runnable(path))
    assert len(started) == 1
    head = path.read_bytes()[: read_header(path).data_start]
    ensure_loads(read_runnable(path), head)  # the same bytes out of an archive
    assert len(started) == 1
    write_random(path, Shape(layers=3))
    ensure_loads(read_runnable(path))
    assert len(started) == 2


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2", "gemma3", "phi3", "gpt2"])
def test_sound_models_are_let_through(tmp_path: Path, architecture: str) -> None:
    window = 32 if architecture.startswith("gemma") else 0
    path = write_random(tmp_path / "sound.gguf", Shape(architecture=architecture, window=window))
    ensure_loads(read_runnable(path))
