"""The index of an archive: members, segments, chunks and totals as values, to bytes and back.

It belongs to `format` (one table more of the same file) and checks counts and sums, not contents.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import ArchiveError
from edgepack.packaging.format import (
    CHUNK_ENTRY,
    CHUNK_OVERHEAD,
    DICTIONARY_ENTRY,
    DIGEST_BYTES,
    HEADER_BYTES,
    INDEX_HEAD,
    MAX_ATTRIBUTES_BYTES,
    MAX_STREAMS,
    MEMBER_ENTRY,
    MEMBER_OVERHEAD,
    RECORD_HEAD,
    SEGMENT_ENTRY,
    TOTAL_ENTRY,
    RecordType,
    decode_name,
    decode_record_head,
    encode_name,
    seal,
    unseal,
)
from edgepack.packaging.index.merkle import merkle_root
from edgepack.packaging.index.sums import check_sums

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from struct import Struct

    from numpy.typing import NDArray

CHUNK_DTYPE = np.dtype([("record_bytes", "<u4"), ("raw_bytes", "<u4"), ("stored", "V32"), ("plain", "V32")])


@dataclass(frozen=True)
class DictionaryEntry:
    """A stored dictionary: `digest` is that at the end of its record."""

    id: int
    kind: int
    record_bytes: int
    digest: bytes


@dataclass(frozen=True)
class MemberEntry:
    """A file in the archive."""

    role: int
    name: str
    n_segments: int
    n_bytes: int
    sha256: bytes


@dataclass(frozen=True)
class SegmentEntry:
    """A contiguous range of a member: a tensor with the padding behind it, or the header, or any piece.

    Attributes:
        layout: how its chunks are split into planes.
        name: the tensor's name, or "" for what is not a tensor.
        n_chunks: chunks that hold it.
        n_bytes: length of the range.
        tensor_bytes: bytes without the padding; `sha256` is theirs.
        sha256: of the first `tensor_bytes` bytes.
    """

    layout: int
    name: str
    n_chunks: int
    n_bytes: int
    tensor_bytes: int
    sha256: bytes


@dataclass(frozen=True)
class StreamTotal:
    """What all streams of one kind with one dictionary came to; `without_dictionary` was measured while packing."""

    kind: int
    dictionary: int
    streams: int
    plain_bytes: int
    stored_bytes: int
    without_dictionary: int


@dataclass(frozen=True)
class Index:
    """All that is known of an archive without reading its chunks.

    Attributes:
        header_digest: SHA-256 of the header, as the header has it.
        merkle_root: over segments and chunks, see `merkle`.
        chunks: structured array of `CHUNK_DTYPE`, in file order.
        attributes: free JSON object: who made it, with what options.
    """

    header_digest: bytes
    merkle_root: bytes
    dictionaries: tuple[DictionaryEntry, ...]
    members: tuple[MemberEntry, ...]
    segments: tuple[SegmentEntry, ...]
    chunks: NDArray[Any]
    totals: tuple[StreamTotal, ...]
    attributes: dict[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The whole index record."""
        names = b"".join(encode_name(name) for name in [e.name for e in self.members] + [e.name for e in self.segments])
        attributes = json.dumps(self.attributes, sort_keys=True, ensure_ascii=False).encode()
        counts = map(len, (self.dictionaries, self.members, self.segments, self.chunks, self.totals, names, attributes))
        parts = [INDEX_HEAD.pack(*counts, 0, self.header_digest, self.merkle_root)]
        parts += [DICTIONARY_ENTRY.pack(d.id, 0, d.kind, d.record_bytes, d.digest) for d in self.dictionaries]
        parts += [
            MEMBER_ENTRY.pack(m.role, 0, len(encode_name(m.name)), m.n_segments, m.n_bytes, m.sha256)
            for m in self.members
        ]
        parts += [
            SEGMENT_ENTRY.pack(s.layout, len(encode_name(s.name)), s.n_chunks, s.n_bytes, s.tensor_bytes, s.sha256)
            for s in self.segments
        ]
        parts.append(self.chunks.tobytes())
        parts += [
            TOTAL_ENTRY.pack(t.kind, t.dictionary, 0, t.streams, t.plain_bytes, t.stored_bytes, t.without_dictionary)
            for t in self.totals
        ]
        body = b"".join([*parts, names, attributes])
        size = RECORD_HEAD.size + len(body) + DIGEST_BYTES
        return seal(RECORD_HEAD.pack(RecordType.INDEX, 0, 0, size), body)


def check_index_size(head: bytes, index_bytes: int, index_offset: int) -> None:
    """Check the counts at the beginning of an index against its length and the room before it.

    Cheap, so that a hostile index is refused before it is read.

    Args:
        head: the first bytes of the index record.
        index_bytes: length of the whole record.
        index_offset: where it begins in the file.

    Raises:
        ArchiveError: counts that cannot be.
    """
    if len(head) < RECORD_HEAD.size + INDEX_HEAD.size:
        raise ArchiveError(f"index: expected at least {RECORD_HEAD.size + INDEX_HEAD.size} bytes, got {len(head)}")
    kind, _small, _argument, size = decode_record_head(head, "index")
    counts = INDEX_HEAD.unpack_from(head, RECORD_HEAD.size)[:8]
    dictionaries, members, segments, chunks, totals, names, attributes, _reserved = counts
    expected = (
        RECORD_HEAD.size + INDEX_HEAD.size + DIGEST_BYTES
        + dictionaries * DICTIONARY_ENTRY.size + members * MEMBER_ENTRY.size + segments * SEGMENT_ENTRY.size
        + chunks * CHUNK_ENTRY.size + totals * TOTAL_ENTRY.size + names + attributes
    )  # fmt: skip
    if kind is not RecordType.INDEX or size != index_bytes or expected != index_bytes:
        raise ArchiveError(f"index: its counts need {expected} bytes, got {index_bytes}")
    room = index_offset - HEADER_BYTES
    if chunks * CHUNK_OVERHEAD > room or segments > chunks or members * MEMBER_OVERHEAD > room:
        raise ArchiveError(f"index: {members} members, {segments} segments and {chunks} chunks in {room} bytes")
    if totals > chunks * MAX_STREAMS or dictionaries > 255:
        raise ArchiveError(f"index: {totals} totals, {dictionaries} dictionaries for {chunks} chunks")
    if attributes > MAX_ATTRIBUTES_BYTES:
        raise ArchiveError(f"index: attributes of {attributes} bytes, the limit is {MAX_ATTRIBUTES_BYTES}")


def decode_index(record: bytes, index_offset: int) -> Index:
    """Parse a whole index record.

    Raises:
        ArchiveError: counts, lengths or names that cannot be.
        IntegrityError: the index is damaged.
    """
    check_index_size(record[: RECORD_HEAD.size + INDEX_HEAD.size], len(record), index_offset)
    cursor = _Cursor(unseal(record, "index"), RECORD_HEAD.size)
    head = cursor.rows(INDEX_HEAD, 1)[0]
    dictionaries = tuple(DictionaryEntry(r[0], r[2], r[3], r[4]) for r in cursor.rows(DICTIONARY_ENTRY, head[0]))
    members = cursor.rows(MEMBER_ENTRY, head[1])
    segments = cursor.rows(SEGMENT_ENTRY, head[2])
    chunks = np.frombuffer(cursor.take(head[3] * CHUNK_ENTRY.size), CHUNK_DTYPE)
    totals = tuple(StreamTotal(r[0], r[1], *r[3:]) for r in cursor.rows(TOTAL_ENTRY, head[4]))
    names = _Cursor(cursor.take(head[5]))
    index = Index(
        head[8],
        head[9],
        dictionaries,
        tuple(MemberEntry(r[0], names.text(r[2]), *r[3:]) for r in members),
        tuple(SegmentEntry(r[0], names.text(r[1]), *r[2:]) for r in segments),
        chunks,
        totals,
        _parse_attributes(bytes(cursor.take(head[6]))),
    )
    if names.left:
        raise ArchiveError(f"index: {names.left} bytes of names belong to nothing")
    check_sums(index, index_offset)
    return index


class _Cursor:
    """Walks a checked buffer; names are the only lengths that can still run over."""

    def __init__(self, view: memoryview, position: int = 0) -> None:
        self._view = view
        self._position = position

    @property
    def left(self) -> int:
        return len(self._view) - self._position

    def take(self, count: int) -> memoryview:
        if count > self.left:
            raise ArchiveError(f"index: expected {count} bytes, {self.left} are left")
        self._position += count
        return self._view[self._position - count : self._position]

    def rows(self, layout: Struct, count: int) -> list[tuple[Any, ...]]:
        return list(layout.iter_unpack(self.take(count * layout.size)))

    def text(self, count: int) -> str:
        return decode_name(bytes(self.take(count)))


def _parse_attributes(raw: bytes) -> dict[str, Any]:
    try:
        attributes = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"index: attributes are not JSON: {error}") from None
    if not isinstance(attributes, dict):
        raise ArchiveError("index: attributes: expected a JSON object")
    return attributes


def check_roots(index: Index, header_digest: bytes) -> None:
    """Check that the index belongs to the header and that its Merkle root is that of its leaves.

    Raises:
        ArchiveError: either differs.
    """
    if index.header_digest != header_digest:
        raise ArchiveError("index: it belongs to another header")
    if merkle_root(merkle_leaves(index.segments, index.chunks)) != index.merkle_root:
        raise ArchiveError("index: the Merkle root differs from its leaves")


def merkle_leaves(segments: Sequence[SegmentEntry], chunks: NDArray[Any]) -> Iterator[bytes]:
    """What the Merkle root is over: for each segment its SHA-256, then that of each of its chunks."""
    first = 0
    for segment in segments:
        yield segment.sha256
        for digest in chunks["plain"][first : first + segment.n_chunks]:
            yield digest.tobytes()
        first += segment.n_chunks
