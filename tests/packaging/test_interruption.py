"""Interrupted work: a kill at any moment leaves no wrong file, and the next run gives the right bytes."""

from __future__ import annotations

import errno
import json
import random
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import edgepack
from edgepack.errors import ResourceError, UsageError
from edgepack.files.resumable import resumable_output
from edgepack.gguf.types import GGMLType
from edgepack.packaging.delta.diff import diff_files
from edgepack.packaging.delta.patch import apply_patch
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.restore.unpack import unpack_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Forks a child for each line it reads, kills it with SIGKILL after the given time, tells whether it had ended.
SERVER = """
import json, os, signal, sys, time
from pathlib import Path
from edgepack.api.archives import pack
from edgepack.api.unpacking import unpack
from edgepack.api.updates import patch
operations = {"pack": pack, "unpack": unpack, "patch": patch}
for line in sys.stdin:
    name, paths, delay = json.loads(line)
    child = os.fork()
    if child == 0:
        operations[name](*map(Path, paths))
        os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    print(json.dumps(os.waitpid(child, 0)[1] == 0), flush=True)
"""


@pytest.fixture
def kill_after() -> Iterator[Callable[[str, list[Path], float], bool]]:
    """Run an operation in a process of its own and kill it after some seconds; tells whether it had ended."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin
        assert server.stdout

        def run(name: str, paths: list[Path], delay: float) -> bool:
            assert server.stdin
            assert server.stdout
            server.stdin.write(json.dumps([name, [str(path) for path in paths], delay]) + "\n")
            server.stdin.flush()
            return bool(json.loads(server.stdout.readline()))

        yield run
        server.stdin.close()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(sys, "getdlopenflags"), reason="needs fork and SIGKILL")
def test_a_kill_at_any_of_200_moments_leaves_no_wrong_file_and_the_next_run_succeeds(
    write_gguf: Callable[..., Path], tmp_path: Path, kill_after: Callable[[str, list[Path], float], bool]
) -> None:
    tensors = {f"blk.{i}.weight": (512, 2048, GGMLType.Q5_K) for i in range(5)}
    old, new = (
        write_gguf(tensors, "old.gguf"),
        write_gguf(tensors | {"x": (64, 256, GGMLType.Q6_K)}, "new.gguf", seed=2),
    )
    archive, patch = tmp_path / "reference.edgepack", tmp_path / "p.edgepatch"
    pack_archive(old, archive)
    diff_files(old, new, patch)
    (tmp_path / "work").mkdir()
    out = tmp_path / "work" / "out"
    work: dict[str, tuple[list[Path], bytes, Any]] = {
        "pack": ([old, out], archive.read_bytes(), edgepack.pack),
        "unpack": ([archive, out], old.read_bytes(), edgepack.unpack),
        "patch": ([old, patch, out], new.read_bytes(), edgepack.patch),
    }
    longest = dict.fromkeys(work, 0.02)
    killed, kept = dict.fromkeys(work, 0), 0
    rng = random.Random(6)
    for number in range(200):
        name = list(work)[number % 3]
        paths, expected, operation = work[name]
        if kill_after(name, paths, rng.uniform(0, longest[name])):
            assert out.read_bytes() == expected
            out.unlink()
            longest[name] *= 0.8
            continue
        killed[name] += 1
        longest[name] *= 1.25  # so that kills fall on every part of the work, however fast the machine is
        assert not out.exists() or out.read_bytes() == expected
        if number % 2:  # else the next interruption falls on what this one left
            result = operation(*paths, force=True)  # a kill after the renaming leaves a whole file
            kept += getattr(result, "kept_bytes", 0)
            assert out.read_bytes() == expected
            assert [path.name for path in out.parent.iterdir()] == ["out"]
        out.unlink(missing_ok=True)
    assert all(count > 10 for count in killed.values()), killed
    assert kept > 0


@contextmanager
def full_disk_after(pieces: int) -> Iterator[Callable[[int], object]]:
    """Progress that fails as a write does when the disk is full."""
    left = [pieces]

    def advance(_amount: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    yield advance


def test_a_full_disk_while_unpacking_keeps_what_was_written_for_the_next_run(gguf: Path, tmp_path: Path) -> None:
    pack_archive(gguf, tmp_path / "a.edgepack")
    out = tmp_path / "out.gguf"
    with pytest.raises(ResourceError, match="free some space and run this again: it continues"):
        unpack_archive(tmp_path / "a.edgepack", out, progress=lambda *_: full_disk_after(6))
    assert not out.exists()
    assert unpack_archive(tmp_path / "a.edgepack", out).kept_bytes > 0
    assert out.read_bytes() == gguf.read_bytes()


def test_a_full_disk_while_packing_or_patching_leaves_nothing(gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="nothing was left behind"):
        pack_archive(gguf, tmp_path / "a.edgepack", progress=lambda *_: full_disk_after(3))
    (tmp_path / "new").write_bytes(gguf.read_bytes()[:-1])
    diff_files(gguf, tmp_path / "new", tmp_path / "p.edgepatch")
    with pytest.raises(ResourceError, match="nothing was left behind"):
        apply_patch(gguf, tmp_path / "p.edgepatch", tmp_path / "out", progress=lambda *_: full_disk_after(1))
    assert {path.name for path in tmp_path.iterdir()} == {"model.gguf", "new", "p.edgepatch"}


@pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")
def test_two_runs_at_once_do_not_write_one_file(tmp_path: Path) -> None:
    with (
        resumable_output(tmp_path / "out", 1) as stream,
        pytest.raises(UsageError, match="another run is writing it"),
        resumable_output(tmp_path / "out", 1),
    ):
        raise AssertionError("the second run was let in")
    assert stream.closed
    assert (tmp_path / "out").exists()
