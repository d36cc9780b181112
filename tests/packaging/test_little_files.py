"""Little files that would become much are refused before they do; what is in proportion is still read.

`python tools/attack.py bombs` prints what refusing each of them takes of time and memory, in processes of their own.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from attack_bombs import Bomb, make_bombs, sparse

from edgepack.cli import execute
from edgepack.errors import ArchiveError, IntegrityError
from edgepack.packaging import format as archive_format
from edgepack.packaging.archive import open_archive
from edgepack.packaging.coding import streams
from edgepack.packaging.format import FREE_BYTES, MOST_EXPANSION, check_expansion
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.restore.stream import unpack_stream
from edgepack.packaging.restore.unpack import unpack_archive
from edgepack.packaging.segments import plan_member


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> list[Bomb]:
    return make_bombs(tmp_path_factory.mktemp("bombs"))


def peak_bytes(*, reset: bool = False) -> int:
    """This process' peak memory, made to be what it is now if asked; 0 where there is no /proc."""
    if sys.platform != "linux":
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])


def test_every_bomb_is_refused_in_little_memory_and_nothing_appears(
    bombs: list[Bomb], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    execute(["run", str(tmp_path / "nothing")])  # imports are no part of the cost
    for bomb in bombs:
        before = peak_bytes(reset=True)
        code = execute(list(bomb.arguments))
        assert peak_bytes() - before < 50e6, bomb.name
        assert code == 0 if bomb.harmless else code in (1, 6, 7, 13), bomb.name
        assert "Traceback" not in capfd.readouterr().err
    assert not Path(bombs[0].file).with_name("out").exists()
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_contents_in_proportion_are_read_and_others_are_neither_read_nor_written(tmp_path: Path, gguf: Path) -> None:
    check_expansion(FREE_BYTES + 100 * MOST_EXPANSION, 100)
    with pytest.raises(ArchiveError, match="it declares"):
        check_expansion(FREE_BYTES + 100 * MOST_EXPANSION + 1, 100)
    pack_archive(gguf, tmp_path / "some.edgepack", include=[sparse(tmp_path / "some", 20 << 20)])
    unpack_archive(tmp_path / "some.edgepack", tmp_path / "some.out", member="some")
    assert (tmp_path / "some.out").stat().st_size == 20 << 20


def test_a_packer_does_not_write_what_no_reader_would_take(tmp_path: Path) -> None:
    plain = sparse(tmp_path / "zeros", 64 << 20)
    with plain.open("r+b") as stream:
        stream.write(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    assert plan_member(plain, main=True).bytes == 64 << 20
    with pytest.raises(ArchiveError, match="it declares"):
        pack_archive(plain, tmp_path / "zeros.edgepack")
    assert not (tmp_path / "zeros.edgepack").exists()


def test_a_pipe_is_held_to_the_same_proportion(bombs: list[Bomb], tmp_path: Path) -> None:
    trellis = next(bomb.file for bomb in bombs if "trellis" in bomb.file)
    with Path(trellis).open("rb") as stream, pytest.raises(ArchiveError, match="it declares"):
        unpack_stream(stream, tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()


def test_a_damaged_record_is_found_before_anything_is_decoded(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack_archive(gguf, tmp_path / "a.edgepack").output
    with open_archive(archive) as opened:
        *_, last = opened.chunks(opened.main)
    content = bytearray(archive.read_bytes())
    content[last.offset + last.record_bytes // 2] ^= 1
    archive.write_bytes(content)

    def decoded(*_arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr(streams.StreamDecoder, "decode", decoded)
    with pytest.raises(IntegrityError, match="SHA-256 differs"):
        unpack_archive(archive, tmp_path / "out")


def test_the_limits_are_those_of_the_document() -> None:
    assert (archive_format.FREE_BYTES, archive_format.MOST_EXPANSION) == (4 << 20, 256)
