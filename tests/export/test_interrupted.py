"""An export that was interrupted goes on where it stopped and gives the same bytes; shards load as one model."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgepack.cli import execute as run
from edgepack.edge.llama.options import RuntimeOptions
from edgepack.edge.llama.runtime import LoadedModel
from edgepack.export import interrupted
from edgepack.export.gguf_file import write_gguf
from edgepack.export.interrupted import journal_path, noted, plan_digest
from edgepack.export.mapped_model import open_model
from edgepack.export.plan import ExportPlan, plan_export, split_plan
from edgepack.files.names import partial_path
from edgepack.gguf.reader import read_header
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from pathlib import Path

KILLED = """
import os, sys
from pathlib import Path
from edgepack.export import gguf_file, interrupted
from edgepack.export.mapped_model import open_model
from edgepack.export.plan import plan_export
from edgepack.quant.types.targets import find_target
interrupted._STEP_BYTES = 1
original, calls = gguf_file.GGUFWriter.write, []
def write(self, name, data):
    calls.append(name)
    if len(calls) == int(sys.argv[3]):
        os._exit(9)
    original(self, name, data)
gguf_file.GGUFWriter.write = write
gguf_file.write_gguf(plan_export(open_model(Path(sys.argv[1])), find_target("q5km")), Path(sys.argv[2]), resume=True)
"""


@pytest.fixture
def plan(books: Path) -> ExportPlan:
    return plan_export(open_model(books), find_target("q5km"))


@pytest.mark.parametrize("kills", [[3], [20, 30], [57]])
def test_a_killed_export_goes_on_and_gives_the_same_bytes(
    kills: list[int], plan: ExportPlan, books: Path, tmp_path: Path
) -> None:
    whole, path = tmp_path / "whole.gguf", tmp_path / "x.gguf"
    write_gguf(plan, whole)
    for kill in kills:
        result = subprocess.run([sys.executable, "-c", KILLED, str(books), str(path), str(kill)], capture_output=True)
        assert result.returncode in (0, 9)
        assert path.exists() == (result.returncode == 0)
    if not path.exists():
        assert kills == [3] or noted(path, plan_digest(plan)) is not None  # so early there may be no note yet
        write_gguf(plan, path, resume=True)
    assert path.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["whole.gguf", "x.gguf"]


def interrupt(plan: ExportPlan, path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Ctrl-C after some tensors, with a journal at every one: each note is awaited, however slow the disk is."""
    monkeypatch.setattr(interrupted, "_STEP_BYTES", 1)
    original = interrupted.Journal.note

    def note(self: interrupted.Journal, tensors: int, length: int) -> None:
        original(self, tensors, length)
        if self._pending is not None:
            self._pending.result()
        if tensors >= after:
            raise KeyboardInterrupt

    monkeypatch.setattr(interrupted.Journal, "note", note)
    with pytest.raises(KeyboardInterrupt):
        write_gguf(plan, path)
    monkeypatch.setattr(interrupted.Journal, "note", original)


def test_ctrl_c_keeps_what_can_be_resumed_and_a_new_run_without_resume_begins_anew(
    plan: ExportPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.gguf"
    interrupt(plan, path, monkeypatch, after=10)
    assert not path.exists()
    assert partial_path(path).exists()
    write_gguf(plan, path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_remains_of_another_plan_or_damaged_journals_are_not_resumed(
    plan: ExportPlan, books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.gguf"
    interrupt(plan, path, monkeypatch, after=10)
    other = plan_export(open_model(books), find_target("q4km"))
    assert noted(path, plan_digest(plan)) is not None
    assert noted(path, plan_digest(other)) is None
    whole = journal_path(path).read_text()
    for text in (
        "",
        "{}",
        '{"plan": 1, "ends": "x", "digests": null}',
        "[" * 100_000,
        whole.replace('"ends": [', '"ends": [-1, '),
    ):
        journal_path(path).write_text(text)
        assert noted(path, plan_digest(plan)) is None


@pytest.mark.parametrize("damage", ["header", "middle", "end", "shorter"])
def test_a_damaged_partial_file_is_redone_from_the_damage_on_and_gives_the_same_bytes(
    damage: str, plan: ExportPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, path = tmp_path / "whole.gguf", tmp_path / "x.gguf"
    write_gguf(plan, whole)
    interrupt(plan, path, monkeypatch, after=10)
    found = noted(path, plan_digest(plan))
    assert found is not None
    with partial_path(path).open("r+b") as stream:
        if damage == "shorter":
            stream.truncate(found.bytes - 1)
        else:
            stream.seek({"header": 3, "middle": found.bytes // 2, "end": found.bytes - 100}[damage])
            byte = stream.read(1)
            stream.seek(-1, 1)
            stream.write(bytes((byte[0] ^ 16,)))
    rest = noted(path, plan_digest(plan))
    assert (rest.tensors if rest else 0) < found.tensors
    assert (rest is None) == (damage == "header")
    write_gguf(plan, path, resume=True)
    assert path.read_bytes() == whole.read_bytes()


def test_shards_load_in_llama_cpp_as_the_same_model(plan: ExportPlan, books: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    write_gguf(plan, whole)
    assert run(["export", str(books), "--target", "q5km", "-o", str(tmp_path / "x.gguf"), "--shard-size", "2MB"]) == 0
    names = sorted(path.name for path in tmp_path.glob("x-*"))
    assert names == [f"x-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    shards = [read_header(tmp_path / name) for name in names]
    assert sum(len(shard.tensors) for shard in shards) == len(plan.tensors)
    assert all(sum(t.nbytes for t in shard.tensors) <= 2_000_000 for shard in shards)
    tokens = list(range(40))
    logits = []
    for path in (whole, tmp_path / names[0]):
        with LoadedModel(path, RuntimeOptions(n_ctx=64)) as model:
            logits.append(model.logits(tokens))
    assert np.array_equal(logits[0], logits[1])


def test_a_plan_that_fits_into_one_shard_is_one_file(plan: ExportPlan) -> None:
    assert split_plan(plan, 10**9) == [plan]


def test_finished_shards_are_kept_when_an_export_is_resumed(books: Path, tmp_path: Path) -> None:
    arguments = ["export", str(books), "--target", "q5km", "-o", str(tmp_path / "x.gguf"), "--shard-size", "2MB"]
    assert run(arguments) == 0
    first, second = tmp_path / "x-00001-of-00003.gguf", tmp_path / "x-00002-of-00003.gguf"
    before, expected = first.stat().st_mtime_ns, second.read_bytes()
    second.unlink()
    assert run([*arguments, "--resume"]) == 0
    assert first.stat().st_mtime_ns == before
    assert second.read_bytes() == expected
