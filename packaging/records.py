"""The records of an archive, to bytes and back: chunks, members, dictionaries, signatures.

Structs and limits stand in `format`, the index record in `index`. Every length is checked before it is used;
what the streams of a chunk hold is left to `chunks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.errors import ArchiveError
from edgepack.packaging.format import (
    CHUNK_HEAD,
    CHUNK_OVERHEAD,
    DIGEST_BYTES,
    MAX_CHUNK_BYTES,
    MAX_STREAMS,
    MEMBER_HEAD,
    RECORD_HEAD,
    SIGNATURE,
    STREAM,
    RecordType,
    decode_name,
    decode_record_head,
    encode_name,
    seal,
    unseal,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class StreamEntry:
    """One stream of a chunk: `kind` is layout id × 16 + plane number (15: the ragged tail)."""

    kind: int
    codec: int
    dictionary: int
    stored_bytes: int
    plain_bytes: int


@dataclass(frozen=True)
class ChunkHead:
    """The beginning of a chunk record; the streams' stored bytes follow in order."""

    raw_bytes: int
    layout: int
    streams: tuple[StreamEntry, ...]

    @property
    def payload_start(self) -> int:
        """Where the first stream begins in the record."""
        return RECORD_HEAD.size + CHUNK_HEAD.size + len(self.streams) * STREAM.size

    @property
    def record_bytes(self) -> int:
        """Length of the whole record."""
        return self.payload_start + sum(stream.stored_bytes for stream in self.streams) + DIGEST_BYTES


def encode_chunk(raw_bytes: int, layout: int, streams: Sequence[tuple[StreamEntry, bytes | memoryview]]) -> bytes:
    """A whole chunk record.

    Args:
        raw_bytes: length of the restored piece.
        layout: id from `layouts`.
        streams: entries with their stored bytes, in the layout's order.
    """
    head = ChunkHead(raw_bytes, layout, tuple(entry for entry, _ in streams))
    parts = [
        RECORD_HEAD.pack(RecordType.CHUNK, 0, len(streams), head.record_bytes),
        CHUNK_HEAD.pack(raw_bytes, layout, 0),
    ]
    parts += [STREAM.pack(e.kind, e.codec, e.dictionary, e.stored_bytes, e.plain_bytes) for e in head.streams]
    return seal(*parts, *(stored for _, stored in streams))


def decode_chunk_head(record: bytes | memoryview, where: str) -> ChunkHead:
    """The head of a chunk record, its lengths checked against the record and the limits.

    Raises:
        ArchiveError: not a chunk, or lengths that contradict each other.
    """
    kind, _small, n_streams, record_bytes = decode_record_head(record, where)
    if kind is not RecordType.CHUNK or record_bytes != len(record):
        raise ArchiveError(f"{where}: expected a chunk of {len(record)} bytes, got {kind.name} of {record_bytes}")
    if n_streams > MAX_STREAMS or CHUNK_OVERHEAD + n_streams * STREAM.size > len(record):
        raise ArchiveError(f"{where}: {n_streams} streams do not fit into {len(record)} bytes")
    raw_bytes, layout, _reserved = CHUNK_HEAD.unpack_from(record, RECORD_HEAD.size)
    if not 0 < raw_bytes <= MAX_CHUNK_BYTES:
        raise ArchiveError(f"{where}: expected 1 to {MAX_CHUNK_BYTES} raw bytes, got {raw_bytes}")
    start = RECORD_HEAD.size + CHUNK_HEAD.size
    table = memoryview(record)[start : start + n_streams * STREAM.size]
    head = ChunkHead(raw_bytes, layout, tuple(StreamEntry(*fields) for fields in STREAM.iter_unpack(table)))
    if head.record_bytes != len(record):
        raise ArchiveError(f"{where}: streams of {head.record_bytes} bytes in a record of {len(record)}")
    return head


def encode_member(role: int, name: str, content_bytes: int) -> bytes:
    """A whole member record: it precedes the chunks of the member."""
    raw = encode_name(name)
    size = RECORD_HEAD.size + MEMBER_HEAD.size + len(raw) + DIGEST_BYTES
    return seal(RECORD_HEAD.pack(RecordType.MEMBER, role, len(raw), size), MEMBER_HEAD.pack(content_bytes), raw)


def decode_member(record: bytes, where: str) -> tuple[int, str, int]:
    """(role, name, content bytes) of a whole member record.

    Raises:
        ArchiveError: lengths that contradict each other.
        IntegrityError: the record is damaged.
    """
    body = unseal(record, where)
    _kind, role, name_bytes, _size = decode_record_head(body, where)
    raw = bytes(body[RECORD_HEAD.size + MEMBER_HEAD.size :])
    if len(body) < RECORD_HEAD.size + MEMBER_HEAD.size or len(raw) != name_bytes:
        raise ArchiveError(f"{where}: expected a name of {name_bytes} bytes, got {len(raw)}")
    return role, decode_name(raw), MEMBER_HEAD.unpack_from(body, RECORD_HEAD.size)[0]


def encode_dictionary_head(identifier: int, kind: int, record_bytes: int) -> bytes:
    """The head of a dictionary record; the dictionary follows."""
    return RECORD_HEAD.pack(RecordType.DICTIONARY, identifier, kind, record_bytes)


def encode_dictionary(identifier: int, kind: int, content: bytes) -> bytes:
    """A whole dictionary record."""
    size = RECORD_HEAD.size + len(content) + DIGEST_BYTES
    return seal(encode_dictionary_head(identifier, kind, size), content)


def encode_signatures(signatures: list[tuple[bytes, bytes]]) -> bytes:
    """A whole signature record from (public key, signature) pairs; nothing when there are none."""
    if not signatures:
        return b""
    size = RECORD_HEAD.size + len(signatures) * SIGNATURE.size + DIGEST_BYTES
    head = RECORD_HEAD.pack(RecordType.SIGNATURES, 0, len(signatures), size)
    return seal(head, *(SIGNATURE.pack(*pair) for pair in signatures))


def decode_signatures(record: bytes) -> list[tuple[bytes, bytes]]:
    """(public key, signature) pairs of a whole signature record; none for no bytes.

    Raises:
        ArchiveError: lengths that contradict each other.
        IntegrityError: the record is damaged.
    """
    if not record:
        return []
    body = unseal(record, "signatures")
    kind, _small, count, size = decode_record_head(body, "signatures")
    table = body[RECORD_HEAD.size :]
    if kind is not RecordType.SIGNATURES or size != len(record) or len(table) != count * SIGNATURE.size:
        raise ArchiveError(f"signatures: expected {count} in {size} bytes, got {len(record)} bytes")
    return [(key, signature) for key, signature in SIGNATURE.iter_unpack(table)]
