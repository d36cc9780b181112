"""Inputs are plain files of bounded size, and a change while they are read is noticed."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from edgepack.cli import execute
from edgepack.errors import CheckpointError, UsageError
from edgepack.files.source import FileState, WatchedFiles, check_unchanged, open_source, parse_json, read_small

if TYPE_CHECKING:
    from pathlib import Path

posix = pytest.mark.skipif(sys.platform == "win32", reason="FIFOs and devices of POSIX")


@posix
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "absent"])
def test_what_is_no_plain_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(CheckpointError, match="expected a file, got|cannot be read"):
        open_source(path, CheckpointError)


@posix
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("config.json", ["export", "{folder}", "--target", "gguf-f16", "-o", "{out}"]),
        ("model.safetensors", ["export", "{folder}", "--target", "gguf-f16", "-o", "{out}"]),
        ("tokenizer.json", ["export", "{folder}", "--target", "gguf-f16", "-o", "{out}"]),
        ("x.gguf", ["pack", "{folder}/x.gguf", "-o", "{out}"]),
        ("x.gguf", ["export", "{folder}/x.gguf", "--target", "gguf-q8", "-o", "{out}"]),
        ("x.edgepack", ["unpack", "{folder}/x.edgepack", "-o", "{out}"]),
        ("x.edgepack", ["verify", "{folder}/x.edgepack"]),
        ("key", ["sign", "{folder}/x.edgepack", "--key", "{folder}/key"]),
    ],
)
@pytest.mark.parametrize("device", ["/dev/zero", "fifo"])
def test_no_command_hangs_or_fills_the_memory_over_a_device_or_fifo(
    name: str, command: list[str], device: str, books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in books.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / name).unlink(missing_ok=True)
    if device == "fifo":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(device)
    arguments = [part.format(folder=folder, out=tmp_path / "out") for part in command]
    assert execute(arguments) not in (0, 70)
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_small_files_are_bounded_in_length_and_depth(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_small(tmp_path / "x", most_bytes=5) == b"12345"
    with pytest.raises(UsageError, match="expected at most 4 bytes, got 5"):
        read_small(tmp_path / "x", most_bytes=4)
    assert parse_json(b"[" * 200 + b"]" * 200, "x")
    for raw in (b"[" * 202 + b"]" * 202, b"[" * 10**6, b"{", b"\xff", b"1" * 5000 + b"x"):
        with pytest.raises(UsageError, match="x: expected JSON"):
            parse_json(raw, "x")


def test_a_file_that_changes_is_told_from_one_that_does_not(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"1234")
    watched = WatchedFiles.of([path])
    watched.check(CheckpointError)
    before = FileState.of(path)
    with path.open("ab") as stream:
        stream.write(b"5")
    with pytest.raises(UsageError, match="it had 4 bytes and has 5"):
        check_unchanged(path, before)
    other = tmp_path / "y"
    other.write_bytes(b"1234")
    os.utime(other, ns=(before.mtime_ns, before.mtime_ns))
    other.replace(path)
    with pytest.raises(CheckpointError, match="another file lies there now"):
        watched.check(CheckpointError)
    path.unlink()
    with pytest.raises(UsageError, match="went away"):
        check_unchanged(path, before)
