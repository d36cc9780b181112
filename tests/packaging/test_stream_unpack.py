"""A pipe: what arrives in order is restored, and anything wrong or missing leaves no file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from edgepack.errors import ArchiveError, CheckFailedError, EdgepackError, IntegrityError, UsageError
from edgepack.packaging.format import FOOTER_BYTES
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.restore.stream import unpack_stream
from edgepack.packaging.signing import generate_key, sign_archive
from edgepack.packaging.trust.policy import policy_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Pipe(io.RawIOBase):
    """Delivers a few bytes at a time and cannot be sought."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        return self._content.read(min(size, 4093) if size >= 0 else size)

    def seek(self, *_: int) -> int:
        raise AssertionError("a pipe cannot be sought")


@pytest.fixture
def archive(gguf: Path, tmp_path: Path) -> Path:
    (tmp_path / "LICENSE").write_text("Apache-2.0\n" * 100)
    path = tmp_path / "a.edgepack"
    pack_archive(gguf, path, include=[tmp_path / "LICENSE"])
    generate_key(tmp_path / "key")
    sign_archive(path, tmp_path / "key")
    return path


def outputs(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if "out" in path.name]


def test_a_member_is_restored_from_a_pipe(archive: Path, gguf: Path, tmp_path: Path) -> None:
    result = unpack_stream(Pipe(archive.read_bytes()), tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == gguf.read_bytes()
    assert result.bytes == gguf.stat().st_size
    unpack_stream(Pipe(archive.read_bytes()), tmp_path / "out.licence", member="LICENSE")
    assert (tmp_path / "out.licence").read_bytes() == (tmp_path / "LICENSE").read_bytes()
    (tmp_path / "folder").mkdir()
    assert unpack_stream(Pipe(archive.read_bytes()), tmp_path / "folder").output == tmp_path / "folder" / gguf.name


def test_an_absent_member_is_told_with_those_that_are_there(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no member 'x'; there are model\.gguf, LICENSE"):
        unpack_stream(Pipe(archive.read_bytes()), tmp_path / "out", member="x")


def test_a_pipe_that_ends_early_leaves_no_file(archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    cuts = [0, 63, 64, 70, 200, len(content) // 2, *range(len(content) - 300, len(content), 7)]
    for cut in cuts:
        with pytest.raises(ArchiveError):
            unpack_stream(Pipe(content[:cut]), tmp_path / "out.gguf")
    assert not outputs(tmp_path)


def test_a_byte_flipped_anywhere_leaves_no_file(archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    for position in range(5, len(content), len(content) // 150):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        with pytest.raises(EdgepackError):
            unpack_stream(Pipe(bytes(damaged)), tmp_path / "out.gguf")
    assert not outputs(tmp_path)


def test_a_whole_chunk_taken_out_is_found(archive: Path, tmp_path: Path) -> None:
    from edgepack.packaging.archive import open_archive

    with open_archive(archive) as opened:
        chunk = list(opened.chunks(opened.main))[3]
    content = archive.read_bytes()
    with pytest.raises((ArchiveError, IntegrityError)):
        unpack_stream(
            Pipe(content[: chunk.offset] + content[chunk.offset + chunk.record_bytes :]), tmp_path / "out.gguf"
        )
    assert not outputs(tmp_path)


def test_a_pipe_can_be_made_to_prove_its_signature(archive: Path, gguf: Path, tmp_path: Path) -> None:
    generate_key(tmp_path / "stranger")
    author, stranger = (tmp_path / name for name in ("key.pub", "stranger.pub"))
    with pytest.raises(CheckFailedError, match="signed by a stranger"):
        unpack_stream(Pipe(archive.read_bytes()), tmp_path / "out.gguf", trust=policy_of([stranger]))
    assert not outputs(tmp_path)
    unpack_stream(Pipe(archive.read_bytes()), tmp_path / "out.gguf", trust=policy_of([stranger, author]))
    assert (tmp_path / "out.gguf").read_bytes() == gguf.read_bytes()


def test_bytes_behind_the_footer_are_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="footer"):
        unpack_stream(Pipe(archive.read_bytes() + bytes(FOOTER_BYTES)), tmp_path / "out.gguf")


def test_memory_stays_bounded(write_gguf: Callable[..., Path], tmp_path: Path) -> None:
    """Both directions hold a few chunks, whatever the size: 48 MB go through in far less."""
    import tracemalloc

    from edgepack.gguf.types import GGMLType

    gguf = write_gguf({f"blk.{i}.weight": (256, 8192, GGMLType.Q8_0) for i in range(22)})
    assert gguf.stat().st_size > 48_000_000
    tracemalloc.start()
    try:
        pack_archive(gguf, tmp_path / "big.edgepack", threads=2)
        with (tmp_path / "big.edgepack").open("rb") as stream:
            unpack_stream(stream, tmp_path / "out.gguf", threads=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32_000_000
    assert (tmp_path / "out.gguf").read_bytes() == gguf.read_bytes()
