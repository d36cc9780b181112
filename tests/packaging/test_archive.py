"""The archive: what goes in comes out bit for bit, and any part can be read without the rest."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import ArchiveError, GGUFError, IntegrityError, ResourceError, UsageError
from edgepack.gguf.reader import read_header
from edgepack.gguf.types import GGMLType
from edgepack.packaging import format as archive_format
from edgepack.packaging.archive import is_archive, open_archive
from edgepack.packaging.coding import chunks
from edgepack.packaging.coding.layouts import LAYOUTS
from edgepack.packaging.coding.streams import StreamDecoder, StreamEncoder
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.restore.unpack import unpack_archive
from edgepack.packaging.segments import Segment
from edgepack.packaging.verify import verify_archive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgepack.packaging.coding.block import Layout


@pytest.fixture
def packed(gguf: Path) -> Path:
    archive = gguf.with_suffix(".edgepack")
    pack_archive(gguf, archive)
    return archive


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
@settings(max_examples=15, deadline=None)
@given(raw=st.binary(min_size=1, max_size=1200), spread=st.sampled_from([1, 7, 64, 256]))
def test_a_chunk_restores_any_bytes_in_any_layout(layout: Layout, raw: bytes, spread: int) -> None:
    raw = bytes(byte % spread for byte in raw)
    chunk = chunks.encode(raw, Segment("", layout, 0, len(raw), len(raw)), StreamEncoder())
    assert chunks.decode(chunk.record, StreamDecoder({}), "here").tobytes() == raw


@pytest.mark.parametrize("kind", GGMLType)
def test_the_round_trip_is_exact_for_every_type(write_gguf: Callable[..., Path], kind: GGMLType) -> None:
    columns = kind.block_size * 3
    path = write_gguf({"a.weight": (7, columns, kind), "b.weight": (1, kind.block_size, kind)})
    archive, out = path.with_suffix(".edgepack"), path.with_suffix(".out")
    pack_archive(path, archive)
    unpack_archive(archive, out)
    assert out.read_bytes() == path.read_bytes()


def test_the_round_trip_is_exact_and_the_results_tell_sizes_and_digest(gguf: Path, tmp_path: Path) -> None:
    archive, out = tmp_path / "model.edgepack", tmp_path / "out.gguf"
    packed = pack_archive(gguf, archive)
    unpacked = unpack_archive(archive, out)
    assert out.read_bytes() == gguf.read_bytes()
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    assert packed.sha256 == unpacked.sha256 == digest
    assert packed.bytes == archive.stat().st_size < packed.original_bytes == unpacked.bytes == gguf.stat().st_size
    assert files(tmp_path) == {"model.gguf", "model.edgepack", "out.gguf"}


def test_bytes_behind_the_last_tensor_survive(gguf: Path, tmp_path: Path) -> None:
    gguf.write_bytes(gguf.read_bytes() + b"left by another tool")
    pack_archive(gguf, tmp_path / "a.edgepack")
    unpack_archive(tmp_path / "a.edgepack", tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == gguf.read_bytes()


def test_the_number_of_threads_does_not_change_the_archive(gguf: Path, tmp_path: Path) -> None:
    for threads in (1, 4):
        pack_archive(gguf, tmp_path / f"{threads}.edgepack", threads=threads)
    assert (tmp_path / "1.edgepack").read_bytes() == (tmp_path / "4.edgepack").read_bytes()


def test_members_are_listed_and_read(gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("Apache-2.0\n" * 100)
    (tmp_path / "empty.txt").write_bytes(b"")
    pack_archive(gguf, tmp_path / "a.edgepack", include=[tmp_path / "LICENSE", tmp_path / "empty.txt"])
    with open_archive(tmp_path / "a.edgepack") as archive:
        assert [member.name for member in archive.members] == ["model.gguf", "LICENSE", "empty.txt"]
        assert archive.members[1].role is archive_format.Role.LICENCE
        assert archive.read_member("LICENSE") == (tmp_path / "LICENSE").read_bytes()
        assert archive.read_member("empty.txt") == b""
        with pytest.raises(UsageError, match=r"no member 'x'; there are model\.gguf, LICENSE, empty\.txt"):
            archive.read_member("x")
    unpack_archive(tmp_path / "a.edgepack", tmp_path / "out", member="LICENSE")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "LICENSE").read_bytes()


def test_two_members_of_one_name_are_refused(gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names of their own"):
        pack_archive(gguf, tmp_path / "a.edgepack", include=[gguf])
    assert files(tmp_path) == {"model.gguf"}


def test_header_tensors_and_ranges_are_read_without_the_rest(gguf: Path, packed: Path) -> None:
    content, header = gguf.read_bytes(), read_header(gguf)
    with open_archive(packed) as archive:
        read = archive.gguf_header()
        assert (read.metadata, read.tensors, read.data_start) == (header.metadata, header.tensors, header.data_start)
        for tensor in header.tensors:
            start = header.data_start + tensor.offset
            assert archive.read_tensor(tensor.name) == content[start : start + tensor.nbytes]
        rng = np.random.default_rng(0)
        for start, stop in np.sort(rng.integers(0, len(content), (20, 2)), axis=1):
            assert archive.read_range(archive.main, int(start), int(stop)) == content[start:stop]
        with pytest.raises(UsageError, match="no tensor 'x'"):
            archive.read_tensor("x")


def test_reading_the_header_touches_few_bytes(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_archive(packed) as archive:
        read: list[int] = []
        original = archive.read_at
        monkeypatch.setattr(archive, "read_at", lambda offset, size: read.append(size) or original(offset, size))
        archive.gguf_header()
    assert sum(read) < packed.stat().st_size / 20


def test_verify_finds_nothing_in_a_sound_archive(packed: Path) -> None:
    assert verify_archive(packed) == verify_archive(packed, deep=True) == ()


def test_a_flipped_byte_in_a_chunk_is_found_by_verify_and_unpack_and_named(packed: Path, tmp_path: Path) -> None:
    with open_archive(packed) as archive:
        segment = archive.tensor("blk.0.attn_q.weight")
        chunk = next(archive.chunks(archive.main, segment.start, segment.start + 1))
    content = bytearray(packed.read_bytes())
    content[chunk.offset + 1000] ^= 1
    packed.write_bytes(content)
    for deep in (False, True):
        (problem, *others) = verify_archive(packed, deep=deep)
        assert problem.where == chunk.where
        assert "blk.0.attn_q.weight" in problem.where
        assert not others
    with pytest.raises(IntegrityError, match=r"chunk \d+ .*blk\.0\.attn_q\.weight"):
        unpack_archive(packed, tmp_path / "out.gguf")
    assert files(tmp_path) == {"model.gguf", "model.edgepack"}


def test_what_is_not_a_gguf_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not a GGUF at all")
    with pytest.raises(GGUFError, match="magic"):
        pack_archive(tmp_path / "x.gguf", tmp_path / "x.edgepack")
    with pytest.raises(UsageError, match="no such file"):
        pack_archive(tmp_path / "y.gguf", tmp_path / "x.edgepack")
    assert files(tmp_path) == {"x.gguf"}


def test_what_is_not_an_archive_is_refused(gguf: Path, tmp_path: Path) -> None:
    assert not is_archive(gguf)
    with pytest.raises(ArchiveError, match="expected an edgepack archive"):
        open_archive(gguf)
    with pytest.raises(ArchiveError, match="cannot be read"):
        open_archive(tmp_path / "absent")
    with pytest.raises(ArchiveError, match="folder"):
        open_archive(tmp_path)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ArchiveError, match="archive's header"):
        open_archive(tmp_path / "empty")


def test_an_absent_output_folder_is_told_before_work_begins(gguf: Path, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        pack_archive(gguf, tmp_path / "absent" / "a.edgepack")
    with pytest.raises(UsageError, match="does not exist"):
        unpack_archive(packed, tmp_path / "absent" / "a.gguf")


def test_a_disk_that_is_too_small_is_told_before_work_begins(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 1000})())
    with pytest.raises(ResourceError, match="free"):
        unpack_archive(packed, tmp_path / "out.gguf")
    assert files(tmp_path) == {"model.gguf", "model.edgepack"}


def test_unpack_continues_where_it_stopped_and_checks_what_it_keeps(gguf: Path, packed: Path, tmp_path: Path) -> None:
    content, partial = gguf.read_bytes(), tmp_path / ".out.gguf.partial"
    for left, kept_at_most in ((content[:1_500_000], 1_500_000), (content[:700_000] + bytes(len(content)), 700_000)):
        partial.write_bytes(left)
        result = unpack_archive(packed, tmp_path / "out.gguf")
        assert (tmp_path / "out.gguf").read_bytes() == content
        assert 0 < result.kept_bytes <= kept_at_most
        (tmp_path / "out.gguf").unlink()
    partial.write_bytes(content + b"more")
    assert unpack_archive(packed, tmp_path / "out.gguf").kept_bytes == len(content)
    assert (tmp_path / "out.gguf").read_bytes() == content


def test_ctrl_c_leaves_no_output_and_the_next_run_continues(gguf: Path, packed: Path, tmp_path: Path) -> None:
    done: list[int] = []

    class Interrupting:
        def __enter__(self) -> Callable[[int], object]:
            return self.advance

        def __exit__(self, *_: object) -> None:
            pass

        def advance(self, amount: int) -> None:
            done.append(amount)
            if len(done) == 6:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack_archive(packed, tmp_path / "out.gguf", progress=lambda _label, _total, _unit="B": Interrupting())
    assert not (tmp_path / "out.gguf").exists()
    result = unpack_archive(packed, tmp_path / "out.gguf")
    assert result.kept_bytes > 0
    assert (tmp_path / "out.gguf").read_bytes() == gguf.read_bytes()
    assert files(tmp_path) == {"model.gguf", "model.edgepack", "out.gguf"}
