"""Folders that cannot be written to, and full disks, are one line of every command that writes, and leave nothing.

Root may write anywhere, so the disk's refusal is made by an audit hook: what opens, makes, renames or removes below
the folder gets the error. The tables name every command: a new one must say what it writes before it is shipped.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from file_server import FileServer
from tiny_models import Shape, write_random

from edgepack.cli import COMMANDS, execute
from edgepack.packaging.delta.diff import diff_files
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.signing import generate_key, load_private_key
from edgepack.packaging.trust.signatures import load_public_key

if TYPE_CHECKING:
    from collections.abc import Iterator

# What is asked of each command, {out} being the folder that refuses; `=NAME` first is a variable that leads there.
WRITES = {
    "export": ["{gguf} --target gguf-q8 -o {out}/x.gguf", "{gguf} --target gguf-q8 -o {out}/x.edgepack"],
    "compress": [
        "{books} {recipe} -o {out}/x",
        "{books} {recipe} -o {beside} --metrics {out}/m.prom",
        "{books} {recipe} -o {beside} --log {out}/x.log",
    ],
    "checkpoint": ["{exported} -o {out}/x"],
    "analyze": ["{books} -o {out}/x.json", "{books} --report {out}/x.html"],
    "imatrix": ["{gguf} --text {text} --ctx 64 --chunks 1 -o {out}/x.gguf"],
    "tune": ["{gguf} --reference {gguf} --text {text} --steps 1 -o {out}/x.gguf"],
    "recover": ["{gguf} --reference {gguf} --text {text} -o {out}/x.gguf"],
    "teach": ["{gguf} --documents {sources} -o {out}/x.gguf"],
    "pack": ["{gguf} -o {out}/x.edgepack"],
    "unpack": ["{archive} -o {out}/x.gguf", "{variant} --native -o {out}/x.gguf"],
    "validate": ["{gguf} --reference {gguf} --text {text} --ctx 64 --chunks 1 --report {out}/x.html"],
    "compare": ["{gguf} --reference {gguf} --text {text} --ctx 64 --chunks 1 --report {out}/x.html"],
    "certify": ["{gguf} --reference {gguf} --text {text} --ctx 64 --chunks 1 -o {out}/x.edgepack"],
    "frontier": ["{books} --calibration {text} --text {text} --ctx 64 --chunks 1 --points plain/Q8_0 -o {out}/x"],
    "calibrate": [
        "{gguf} --from-text {text} -o {out}/x.gguf",
        "{gguf} --from-text {text} -o {out}/x.edgepack",
        "{gguf} --from-text {text} --report {out}/x.html",
    ],
    "kv": [
        "{gguf} --text {text} --ctx 64 --chunks 2 --types q8_0 --no-spectra -o {out}/x.gguf",
        "{gguf} --text {text} --ctx 64 --chunks 2 --types q8_0 --no-spectra --report {out}/x.html",
    ],
    "release": ["{archive} -o {out}/x"],
    "extract": ["{archive} output_norm.weight -o {out}", "{archive} a.gguf -o {out}"],
    "keygen": ["{out}/key", "{out}/key --openssf"],
    "trust": ["=EDGEPACK_TRUST add {public}"],
    "sign": ["{archive} --key {key} -o {out}/x.edgepack", "{inside} --key {key}"],
    "diff": ["{gguf} {other} -o {out}/x.edgepatch"],
    "patch": ["{gguf} {patch} -o {out}/x.gguf"],
    "fetch": ["{url} -o {out}/x.edgepack"],
    "update": ["{fetched}"],
    "bundle": ["{archive} -o {out}/x --offline --wheels {sources}"],
    "run": ["=EDGEPACK_CACHE {archive} --prompt a -n 1 --ctx 64 --from-archive never"],
    "serve": [],  # installs as `run` does, by the same function; where nothing refuses it would not end
    "embed": ["=EDGEPACK_CACHE {archive} a --ctx 64"],
    "bench": ["=EDGEPACK_CACHE {archive} -r 1 --n-prompt 4 --n-gen 1"],
}
# Looks at files, and writes nothing that was asked for.
WRITES_NOTHING = {"prune-grid", "verify", "inspect", "evaluate", "provenance", "reproduce", "fit", "cache", "doctor"}
ROWS = [(command, line) for command, lines in WRITES.items() for line in lines]
EVENTS = {"os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.link": 1, "os.symlink": 1, "os.rmdir": 0}


class Refusal:
    """What the hook does while it is set: it can never be taken away again, only told to do nothing."""

    folder: str = ""
    error: int = errno.EROFS
    left: int = 0
    hooked: bool = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if not Refusal.folder or not (event == "open" or event in EVENTS):
        return
    path = arguments[0 if event == "open" else EVENTS[event]]
    if not isinstance(path, (str, bytes, os.PathLike)) or not os.fsdecode(path).startswith(Refusal.folder):
        return
    if Refusal.error == errno.ENOSPC and event in ("os.remove", "os.rmdir", "os.rename"):
        return  # a full disk lets go
    if event == "open":
        flags = arguments[2]
        if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
    Refusal.left -= 1
    if Refusal.left < 0:
        raise OSError(Refusal.error, os.strerror(Refusal.error), os.fsdecode(path))


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Refusal]]:
    """Set its `folder`, and nothing is written below that any more."""
    if not Refusal.hooked:
        sys.addaudithook(_hook)
        Refusal.hooked = True
    Refusal.error, Refusal.left = errno.EROFS, 0
    yield Refusal
    Refusal.folder = ""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, books: Path) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for number, name in enumerate("ab"):
        write_random(folder / f"{name}.gguf", Shape(context=64), seed=number)
    pack_archive(folder / "a.gguf", folder / "a.edgepack", threads=1)
    diff_files(folder / "a.gguf", folder / "b.gguf", folder / "ab.edgepatch")
    generate_key(folder / "key")
    golden = Path(__file__).resolve().parents[1] / "golden/variant/v1-nf4.gguf"
    shutil.copy(golden, folder / "variant.gguf")
    (folder / "recipe.toml").write_text('[export]\ntarget = "gguf-q8"\n')
    (folder / "text").write_text("Once upon a time there was a small fox who wanted to see the sea. " * 20)
    assert execute(["export", str(books), "--target", "gguf-bf16", "-o", str(folder / "exported.gguf")]) == 0
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[FileServer]:
    with FileServer().running() as running:
        yield running


def test_every_command_is_in_a_table() -> None:
    assert {*WRITES, *WRITES_NOTHING} == set(COMMANDS)


@pytest.mark.parametrize(("command", "line"), ROWS, ids=[f"{command} {line[:24]}" for command, line in ROWS])
@pytest.mark.parametrize("seen", [True, False], ids=["seen before", "seen while writing"])
def test_a_folder_that_cannot_be_written_to_is_one_line(
    command: str, line: str, seen: bool, sources: Path, books: Path, server: FileServer, refusing: type[Refusal],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGEPACK_TRUST", str(tmp_path / "trust.json"))
    if line.startswith("="):
        name, _, line = line[1:].partition(" ")
        monkeypatch.setenv(name, str(out / "x"))
    archive = sources / "a.edgepack"
    shutil.copy(archive, out / "inside.edgepack")
    server.add("/m.edgepack", archive.read_bytes())
    if command == "update":
        assert execute(["fetch", server.url("/m.edgepack"), "-o", str(out / "m.edgepack")]) == 0
        pack_archive(sources / "b.gguf", tmp_path / "new.edgepack", threads=1)
        server.add("/m.edgepack", (tmp_path / "new.edgepack").read_bytes())
    places = {
        "out": out, "sources": sources, "books": books, "gguf": sources / "a.gguf", "other": sources / "b.gguf",
        "archive": archive, "variant": sources / "variant.gguf", "exported": sources / "exported.gguf",
        "text": sources / "text", "key": sources / "key", "public": sources / "key.pub",
        "patch": sources / "ab.edgepatch", "inside": out / "inside.edgepack", "fetched": out / "m.edgepack",
        "url": server.url("/m.edgepack"), "recipe": sources / "recipe.toml", "beside": tmp_path / "beside",
    }  # fmt: skip
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capfd.readouterr()
    can = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode, **more: not (seen and mode & os.W_OK and str(path).startswith(str(out)))
        and can(path, mode, **more)
    )  # fmt: skip
    refusing.folder = str(out)
    code = execute([command, *line.format(**places).split()])
    refusing.folder = ""
    told = capfd.readouterr().err
    assert code in (2, 9), told
    assert "Traceback" not in told
    errors = [each for each in told.splitlines() if "error: " in each]
    assert len(errors) == 1, told
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("writes", range(12))
@pytest.mark.parametrize("kind", [[], ["--openssf"]])
def test_keygen_on_a_full_disk_blocks_no_later_one(
    writes: int, kind: list[str], refusing: type[Refusal], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refusing.folder, refusing.error, refusing.left = str(tmp_path), errno.ENOSPC, writes
    code = execute(["keygen", str(tmp_path / "key"), *kind])
    refusing.folder = ""
    assert code in (0, 9), capfd.readouterr().err
    if code:
        assert execute(["keygen", str(tmp_path / "key"), *kind]) == 0, capfd.readouterr().err
    if not kind:
        public = load_private_key(tmp_path / "key").public_key().public_bytes_raw()
        assert load_public_key(tmp_path / "key.pub") == public
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "key.pub"]


@pytest.mark.parametrize(("command", "line"), ROWS, ids=[f"{command} {line[:24]}" for command, line in ROWS])
def test_a_name_that_is_too_long_is_one_line(
    command: str, line: str, sources: Path, books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    out = tmp_path / ("x" * 300)
    if line.startswith("="):
        name, _, line = line[1:].partition(" ")
        monkeypatch.setenv(name, str(out / "x"))
    places = {
        "out": out, "sources": sources, "books": books, "gguf": sources / "a.gguf", "other": sources / "b.gguf",
        "archive": sources / "a.edgepack", "variant": sources / "variant.gguf", "exported": sources / "exported.gguf",
        "text": sources / "text", "key": sources / "key", "public": sources / "key.pub",
        "patch": sources / "ab.edgepatch", "inside": out, "fetched": out, "url": "http://127.0.0.1:1/m.edgepack",
        "recipe": sources / "recipe.toml", "beside": tmp_path / "beside",
    }  # fmt: skip
    code = execute([command, *line.format(**places).split()])
    told = capfd.readouterr().err
    assert code in (2, 7, 9, 14), told
    assert "Traceback" not in told
    assert len([each for each in told.splitlines() if "error: " in each]) == 1, told
