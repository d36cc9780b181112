"""Hostile archives: sealed with right digests, so that only the checks of lengths, counts and names stand in the way."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import ArchiveError, EdgepackError, IntegrityError
from edgepack.gguf.types import GGMLType
from edgepack.packaging import format as archive_format
from edgepack.packaging import records
from edgepack.packaging.archive import open_archive
from edgepack.packaging.coding.layouts import BYTES, layout_of, stream_kind
from edgepack.packaging.format import Footer, seal, sha256
from edgepack.packaging.index.member_names import check_member_name
from edgepack.packaging.index.merkle import merkle_root
from edgepack.packaging.index.table import CHUNK_DTYPE, Index, MemberEntry, SegmentEntry, merkle_leaves
from edgepack.packaging.records import StreamEntry, decode_chunk_head, encode_chunk, encode_member
from edgepack.packaging.restore.stream import unpack_stream
from edgepack.packaging.restore.unpack import unpack_archive
from edgepack.packaging.verify import verify_archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RAW = b"some bytes of a member " * 4


def stored_chunk(raw: bytes = RAW, **changes: int) -> bytes:
    """A chunk whose only stream is stored as it is, with fields changed."""
    entry = StreamEntry(stream_kind(BYTES, 0), 0, 0, len(raw), len(raw))
    fields = {name: value for name, value in changes.items() if name != "layout"}
    return encode_chunk(len(raw), changes.get("layout", BYTES.id), [(replace(entry, **fields), raw)])


def build(path: Path, chunks: list[bytes] | None = None, **changes: Any) -> Path:
    """Write an archive of one member; `changes` replace what would be right."""
    chunks = [stored_chunk()] if chunks is None else chunks
    name, raw_bytes = changes.get("name", "model.gguf"), changes.get("raw_bytes", len(RAW))
    header = archive_format.encode_header(changes.get("content_bytes", raw_bytes * len(chunks)))
    member = encode_member(1, name, raw_bytes * len(chunks))
    rows = [(len(chunk), raw_bytes, chunk[-32:], sha256(RAW)) for chunk in chunks]
    table = np.array(changes.get("rows", rows), CHUNK_DTYPE)
    segments = (SegmentEntry(0, "t", len(chunks), raw_bytes * len(chunks), raw_bytes, sha256(RAW)),)
    index = Index(
        header[-32:],
        b"",
        (),
        (MemberEntry(1, name, 1, raw_bytes * len(chunks), sha256(RAW)),),
        changes.get("segments", segments),
        table,
        (),
        changes.get("attributes", {}),
    )
    index = replace(index, **changes.get("index", {}))
    root = changes.get("root", merkle_root(merkle_leaves(index.segments, index.chunks)))
    record = changes.get("record", replace(index, merkle_root=root).encode())
    body = header + member + b"".join(chunks)
    footer = Footer(changes.get("index_offset", len(body)), changes.get("index_bytes", len(record)), 0)
    path.write_bytes(body + record + footer.encode())
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hostile.edgepack"


@pytest.fixture(autouse=True)
def _refused_in_little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()


def test_the_builder_makes_sound_archives(path: Path) -> None:
    """Else every refusal below would prove nothing."""
    assert verify_archive(build(path), deep=True) == ()
    with open_archive(path) as archive:
        assert archive.read_member("model.gguf") == RAW


ROW = (len(stored_chunk()), len(RAW), stored_chunk()[-32:], sha256(RAW))
SEGMENT = SegmentEntry(0, "t", 1, len(RAW), len(RAW), sha256(RAW))
STRUCTURAL: dict[str, dict[str, Any]] = {
    "a record longer than the file": {"rows": [(2**32 - 1, *ROW[1:])]},
    "a record of no bytes": {"rows": [(0, *ROW[1:])]},
    "a chunk of no bytes": {"rows": [(ROW[0], 0, *ROW[2:])]},
    "a chunk of four gigabytes": {"rows": [(ROW[0], 2**32 - 1, *ROW[2:])], "raw_bytes": 2**32 - 1},
    "chunks that no segment holds": {"rows": [ROW, ROW]},
    "a segment of more chunks than there are": {"segments": (replace(SEGMENT, n_chunks=1000),)},
    "a segment of no chunks": {"segments": (SEGMENT, replace(SEGMENT, n_chunks=0, n_bytes=0, tensor_bytes=0))},
    "a segment of another length": {"segments": (replace(SEGMENT, n_bytes=len(RAW) + 1),)},
    "a tensor longer than its segment": {"segments": (replace(SEGMENT, tensor_bytes=2**63),)},
    "a member of more segments than there are": {"index": {"members": (MemberEntry(1, "m", 9, len(RAW), bytes(32)),)}},
    "a member of another length": {"index": {"members": (MemberEntry(1, "m", 1, 2**63, bytes(32)),)}},
    "two members of one name": {"index": {"members": (MemberEntry(1, "m", 1, len(RAW), bytes(32)),) * 2}},
    "no member": {"index": {"members": (), "segments": ()}, "rows": []},
    "another header": {"index": {"header_digest": bytes(32)}},
    "another content length": {"content_bytes": 2**60},
    "a wrong Merkle root": {"root": bytes(32)},
    "an index before the records": {"index_offset": 64},
    "an index beyond the file": {"index_offset": 2**62},
    "an index of another length": {"index_bytes": 300},
    "attributes that are no object": {"attributes": [1]},
}


@pytest.mark.parametrize("changes", STRUCTURAL.values(), ids=STRUCTURAL.keys())
def test_a_structure_that_cannot_be_is_refused_when_it_is_opened(path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ArchiveError) as caught:
        open_archive(build(path, **changes))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_attributes_nested_too_deeply_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("json.dumps", lambda *_args, **_options: "[" * 200_000)
    build(path)
    with pytest.raises(ArchiveError, match="attributes are not JSON"):
        open_archive(path)


def index_record(counts: tuple[int, ...], tail: bytes = b"") -> bytes:
    """An index record whose head has these counts."""
    body = archive_format.INDEX_HEAD.pack(*counts, 0, bytes(32), bytes(32)) + tail
    return seal(archive_format.RECORD_HEAD.pack(4, 0, 0, 8 + len(body) + 32), body)


@pytest.mark.parametrize("field", range(7))
def test_a_million_entries_that_are_not_there_are_refused(path: Path, field: int) -> None:
    counts = [0] * 7
    counts[field] = 1_000_000
    with pytest.raises(ArchiveError, match="counts need"):
        open_archive(build(path, record=index_record(tuple(counts))))


@pytest.mark.parametrize("field", [0, 1, 2, 3, 4])
def test_entries_without_room_for_their_records_are_refused_before_the_index_is_read(path: Path, field: int) -> None:
    """A sparse file holds a million entries of zeros: its size costs the attacker nothing, nor us."""
    sizes = (archive_format.DICTIONARY_ENTRY, archive_format.MEMBER_ENTRY, archive_format.SEGMENT_ENTRY,
             archive_format.CHUNK_ENTRY, archive_format.TOTAL_ENTRY)  # fmt: skip
    counts = [0] * 7
    counts[field] = 1_000_000
    size = 8 + archive_format.INDEX_HEAD.size + 1_000_000 * sizes[field].size + 32
    head = archive_format.RECORD_HEAD.pack(4, 0, 0, size)
    with path.open("wb") as stream:
        stream.write(archive_format.encode_header(0))
        stream.write(head + archive_format.INDEX_HEAD.pack(*counts, 0, bytes(32), bytes(32)))
        stream.seek(64 + size)
        stream.write(Footer(64, size, 0).encode())
    with pytest.raises(ArchiveError, match="in 0 bytes|for 0 chunks"):
        open_archive(path)


BOMB = zstandard.ZstdCompressor().compress(bytes(200 << 20))
UNSIZED = zstandard.ZstdCompressor(write_content_size=False).compress(RAW)
DISHONEST = zstandard.ZstdCompressor().compress(RAW)


def framed(frame: bytes, plain_bytes: int = len(RAW), **changes: int) -> bytes:
    """A chunk whose stream is the given frame."""
    entry = StreamEntry(stream_kind(BYTES, 0), 1, 0, len(frame), plain_bytes)
    return encode_chunk(len(RAW), BYTES.id, [(replace(entry, **changes), frame)])


CHUNKS = {
    "a frame that inflates beyond its declared length": framed(BOMB),
    "a frame that does not tell its length": framed(UNSIZED),
    "a frame with bytes behind it": framed(DISHONEST + b"more"),
    "a frame cut short": framed(DISHONEST[:-3]),
    "no frame": framed(b"noise"),
    "a codec that is not there": stored_chunk(codec=9),
    "a dictionary that is not there": framed(DISHONEST, dictionary=3),
    "a stream of another kind": stored_chunk(kind=7),
    "a stream that restores to more than the chunk": stored_chunk(plain_bytes=2**32 - 1),
    "a layout that is not there": stored_chunk(layout=4000),
    "another layout than its streams have": stored_chunk(layout=layout_of(GGMLType.Q4_K).id),
    "more streams than it has": encode_chunk(
        len(RAW), BYTES.id, [(StreamEntry(stream_kind(BYTES, 0), 0, 0, 46, 46), RAW[:46])] * 2
    ),
    "no streams": encode_chunk(len(RAW), BYTES.id, []),
}


@pytest.mark.parametrize("chunk", CHUNKS.values(), ids=CHUNKS.keys())
def test_a_hostile_chunk_is_refused_by_name_and_leaves_no_file(path: Path, chunk: bytes) -> None:
    build(path, [stored_chunk(), chunk])
    (problem, *_) = verify_archive(path, deep=True, threads=1)
    assert "chunk 1" in problem.where
    with pytest.raises(ArchiveError, match="chunk 1"):
        unpack_archive(path, path.with_name("out"), threads=1)
    with pytest.raises(ArchiveError, match="chunk 1"), path.open("rb") as stream:
        unpack_stream(stream, path.with_name("out"), threads=1)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_chunk_that_restores_to_other_bytes_is_found_when_files_are_restored(path: Path) -> None:
    build(path, [stored_chunk(RAW[::-1])])
    assert verify_archive(path) == ()
    assert "chunk 0" in verify_archive(path, deep=True)[0].where
    with pytest.raises(IntegrityError, match="restored file differs"):
        unpack_archive(path, path.with_name("out"))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "name",
    ["../evil", "/evil", "a/../../evil", "a//b", "./a", "C:evil", "a\\b", "a\0b", "a\nb", "nul", "com1.txt", "a.", "x" * 1025, ""],
)  # fmt: skip
def test_a_member_name_that_could_leave_its_folder_is_refused(path: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match="stays inside its folder"):
        check_member_name(name)
    with pytest.raises(ArchiveError):
        open_archive(build(path, name=name))
    with pytest.raises(ArchiveError), path.open("rb") as stream:
        unpack_stream(stream, path.parent)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "name", ["model.gguf", "adapters/poet.gguf", ".hidden", "Ünïcode 模型.gguf", "a..b", "console"]
)
def test_ordinary_member_names_are_accepted(name: str) -> None:
    check_member_name(name)


def test_a_newer_format_is_refused_with_advice(path: Path) -> None:
    build(path)
    content = path.read_bytes()
    newer = seal(archive_format.HEADER.pack(archive_format.MAGIC, 2, 0, 0, len(RAW), 0))
    path.write_bytes(newer + content[64:])
    with pytest.raises(ArchiveError, match="expected format version 1, got 2.0, flags 0: update edgepack"):
        open_archive(path)


def test_a_newer_minor_version_and_an_unknown_role_are_read(path: Path) -> None:
    assert records.decode_member(encode_member(99, "later", 5), "here") == (99, "later", 5)
    assert archive_format.Role.of(99) is archive_format.Role.FILE
    newer = seal(archive_format.HEADER.pack(archive_format.MAGIC, 1, 7, 0, len(RAW), 0))
    assert archive_format.decode_header(newer) == ((1, 7), len(RAW))


@settings(deadline=None)
@given(noise=st.binary(max_size=300))
def test_noise_is_never_more_than_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "a"
    for content in (noise, archive_format.encode_header(5) + noise):
        path.write_bytes(content)
        with pytest.raises(EdgepackError):
            open_archive(path)
        with pytest.raises(EdgepackError), path.open("rb") as stream:
            unpack_stream(stream, path.with_name("out"))


@settings(deadline=None)
@given(noise=st.binary(min_size=8, max_size=200), kind=st.sampled_from(archive_format.RecordType))
def test_record_heads_of_noise_are_never_more_than_an_error_of_ours(
    noise: bytes, kind: archive_format.RecordType
) -> None:
    record = bytes([kind]) + noise[1:4] + len(noise).to_bytes(4, "little") + noise[8:]
    with suppress(ArchiveError):
        decode_chunk_head(record, "here")
