"""An output is whole or absent, never written through what others prepared, and belongs to one command at a time."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

import pytest

from edgepack.errors import EdgepackError, IntegrityError, ResourceError, UsageError
from edgepack.files import opened, writeback
from edgepack.files.claim import check_output, claimed_output
from edgepack.files.names import hidden_path, is_temporary_of, lock_path, partial_path, temporary_path
from edgepack.files.output import atomic_output, write_output
from edgepack.files.resumable import resumable_output

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

posix = pytest.mark.skipif(sys.platform == "win32", reason="links, FIFOs and modes of POSIX")


def write(path: Path, content: bytes) -> None:
    with atomic_output(path) as stream:
        stream.write(content)


def write_and_then(output: AbstractContextManager[BinaryIO], content: bytes, then: Callable[[], object]) -> None:
    with output as stream:
        stream.write(content)
        stream.flush()
        then()


def throw(error: BaseException) -> None:
    raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_output_appears_whole_and_nothing_else_with_it(tmp_path: Path) -> None:
    with atomic_output(tmp_path / "x") as stream:
        stream.write(b"con")
        assert not (tmp_path / "x").exists()
        stream.write(b"tent")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"content"


def test_an_error_keeps_what_was_there_before(tmp_path: Path) -> None:
    write(tmp_path / "x", b"before")
    with pytest.raises(ZeroDivisionError):
        write_and_then(atomic_output(tmp_path / "x"), b"new", lambda: throw(ZeroDivisionError()))
    assert (tmp_path / "x").read_bytes() == b"before"
    assert names(tmp_path) == ["x"]


@posix
@pytest.mark.parametrize("make", ["symlink", "hardlink", "fifo"])
@pytest.mark.parametrize("suffix", ["partial", "lock"])
def test_a_prepared_neighbour_is_never_written_through(make: str, suffix: str, tmp_path: Path) -> None:
    victim, out = tmp_path / "victim", tmp_path / "folder" / "out"
    out.parent.mkdir()
    victim.write_bytes(b"precious")
    trap = hidden_path(out, suffix)
    if make == "symlink":
        trap.symlink_to(victim)
    elif make == "hardlink":
        trap.hardlink_to(victim)
    else:
        os.mkfifo(trap)
    with claimed_output(out), resumable_output(out, 3) as stream:
        stream.write(b"new")
    assert victim.read_bytes() == b"precious"
    assert out.read_bytes() == b"new"
    assert names(out.parent) == ["out"]


@posix
def test_a_link_as_output_is_replaced_only_by_force_and_what_it_leads_to_never(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "out").symlink_to(tmp_path / "victim")
    with pytest.raises(UsageError, match="is there already"):
        write_output(tmp_path / "out", b"new")
    write_output(tmp_path / "out", b"new", force=True)
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert (tmp_path / "out").read_bytes() == b"new"


@posix
def test_devices_and_fifos_are_no_outputs_even_by_force(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("fifo", "null"):
        with pytest.raises(UsageError, match="expected a file, got a device"):
            write_output(tmp_path / name, b"", force=True)
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


@posix
@pytest.mark.parametrize("alias", ["itself", "hardlink", "symlink", "in a folder"])
def test_an_input_is_no_output_by_whatever_name_even_by_force(alias: str, tmp_path: Path) -> None:
    source = tmp_path / "ckpt" / "model.safetensors"
    source.parent.mkdir()
    source.write_bytes(b"weights")
    out, inputs = tmp_path / "out", [source]
    if alias == "itself":
        out = source
    elif alias == "hardlink":
        out.hardlink_to(source)
    elif alias == "symlink":
        out.symlink_to(source)
    else:
        out, inputs = source, [source.parent]
    with pytest.raises(UsageError, match="it is the input"):
        write_output(out, b"new", inputs=inputs, force=True)
    assert source.read_bytes() == b"weights"


def test_what_can_be_known_before_is_refused_before(tmp_path: Path) -> None:
    for path, text in (
        (tmp_path, "expected a file name, got a folder"),
        (tmp_path / "absent" / "x", "does not exist"),
        (tmp_path / ("n" * 300), "too long"),
        (tmp_path / "f" / "x", "does not exist"),
    ):
        (tmp_path / "f").touch()
        with pytest.raises(UsageError, match=text):
            check_output(path)
    with pytest.raises(ResourceError, match="disk has"):
        check_output(tmp_path / "x", 1 << 60)


@posix
def test_a_replaced_file_keeps_its_mode_and_a_new_one_gets_the_umasks(tmp_path: Path) -> None:
    write(tmp_path / "x", b"")
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~umask
    (tmp_path / "x").chmod(0o640)
    write(tmp_path / "x", b"new")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
    with atomic_output(tmp_path / "key", mode=0o600):
        assert stat.S_IMODE(next(tmp_path.glob(".key.*")).stat().st_mode) == 0o600


def test_the_longest_name_of_a_folder_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 127)
    with claimed_output(path), resumable_output(path, 1) as stream:
        stream.write(b"x")
    write_output(path, b"y", force=True)
    assert names(tmp_path) == [path.name]


def test_temporary_names_are_told_from_all_others(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    assert is_temporary_of(path, temporary_path(path).name)
    assert temporary_path(path) != temporary_path(path)
    for other in (
        partial_path(path),
        lock_path(path),
        temporary_path(tmp_path / "b.gguf"),
        temporary_path(tmp_path / "xa.gguf"),
    ):
        assert not is_temporary_of(path, other.name)


@posix
def test_what_a_killed_run_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    temporary_path(tmp_path / "x").write_bytes(b"left by a killed run")
    with atomic_output(tmp_path / "x") as first:
        first.write(b"first")
        write(tmp_path / "x", b"second")
        assert len(names(tmp_path)) == 2
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"first"


@posix
def test_a_claimed_name_is_refused_to_others_and_free_afterwards(tmp_path: Path) -> None:
    with claimed_output(tmp_path / "x"):
        with pytest.raises(UsageError, match="another run is writing it"), claimed_output(tmp_path / "x"):
            raise AssertionError("let in")
        with claimed_output(tmp_path / "y"):
            assert names(tmp_path) == [".x.lock", ".y.lock"]
    assert names(tmp_path) == []
    with claimed_output(tmp_path / "x"):
        pass


@posix
def test_who_waits_sees_what_the_other_one_made(tmp_path: Path) -> None:
    seen = []

    def second() -> None:
        with claimed_output(tmp_path / "x", force=True, wait_seconds=60):
            seen.append((tmp_path / "x").read_bytes())

    with claimed_output(tmp_path / "x"):
        thread = threading.Thread(target=second)
        thread.start()
        write(tmp_path / "x", b"first")
    thread.join()
    assert seen == [b"first"]


@posix
def test_a_claim_of_a_killed_run_holds_nobody_up(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from edgepack.files.output import claimed_output\n"
        "with claimed_output(Path(sys.argv[1])): os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "x"], check=False)
    assert names(tmp_path) == [".x.lock"]
    write_output(tmp_path / "x", b"new")
    assert names(tmp_path) == ["x"]


@posix
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_is_one_line_and_the_original_stays(
    code: int, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "x", b"before")

    def fail(*_arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    if call == "replace":
        monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(EdgepackError, match="the disk became full|cannot be written"):
        write(tmp_path / "x", b"new")
    monkeypatch.undo()
    assert (tmp_path / "x").read_bytes() == b"before"
    assert names(tmp_path) == ["x"]


def test_an_output_that_was_taken_away_meanwhile_is_told(tmp_path: Path) -> None:
    def take_away() -> None:
        (temporary,) = tmp_path.glob(".x.*")
        temporary.unlink()
        temporary.write_bytes(b"theirs")

    with pytest.raises(ResourceError, match="another program replaced"):
        write_and_then(atomic_output(tmp_path / "x"), b"mine", take_away)
    assert not (tmp_path / "x").exists()


def test_a_partial_file_stays_after_an_interruption_and_goes_after_an_error_of_ours(tmp_path: Path) -> None:
    for error, kept in ((KeyboardInterrupt(), True), (OSError(errno.EIO, "I/O"), True), (IntegrityError("x"), False)):
        with pytest.raises(type(error)):
            write_and_then(resumable_output(tmp_path / "x", 4), b"half", partial(throw, error))
        assert partial_path(tmp_path / "x").exists() == kept
        assert not (tmp_path / "x").exists()
        partial_path(tmp_path / "x").unlink(missing_ok=True)


@posix
def test_errors_of_writing_are_not_taken_for_those_of_reading(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_output(tmp_path / "x"):
        (tmp_path / "source").open("rb")
    descriptor = os.open("/dev/full", os.O_RDWR) if os.path.exists("/dev/full") else None  # noqa: PTH110
    if descriptor is not None:
        raw, stream = opened.buffered(descriptor, tmp_path / "x")
        with pytest.raises(ResourceError, match="output '.*x': the disk became full"):
            stream.write(bytes(1 << 20))
        raw.close()


def test_a_file_that_grows_is_begun_to_be_written_and_is_what_was_written(tmp_path: Path, monkeypatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(writeback, "_begin", lambda: begun.append)
    piece = bytes(range(256)) * (1 << 12)
    with atomic_output(tmp_path / "grown") as stream:
        for _ in range(40):
            stream.write(piece)
        assert len(begun) == 2
    assert (tmp_path / "grown").read_bytes() == 40 * piece


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such call")
def test_writing_begins_without_an_error_and_a_descriptor_that_cannot_is_let_be(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as stream:
        stream.write(bytes(1 << 20))
        stream.flush()
        assert writeback._begin()(stream.fileno()) == 0
    reading, writing = os.pipe()
    assert writeback._begin()(writing) == -1
    os.close(reading)
    os.close(writing)
