"""The bytes of an archive: every magic, struct, size and limit, and the only code that knows them.

What chunks hold is left to `layouts`, how they are compressed to `streams`, reading files to `archive`.
FORMAT.md describes the same bytes for people; a test holds the two together.

    header | dictionary records | (member record, its chunk records)… | index record | [signatures] | footer

Every record ends with the SHA-256 of all its bytes before that digest. Records follow one another without
gaps, so offsets are sums of lengths and nothing can overlap. All integers are little-endian.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum

from edgepack.errors import ArchiveError, IntegrityError
from edgepack.file_kinds import HEAD_BYTES, describe

MAGIC = b"\x89EPK\r\n\x1a\n"  # not text, and damaged by anything that converts line ends
END_MAGIC = b"EPKEND\r\n"
MAJOR, MINOR = 1, 0  # a reader refuses a newer major; a newer minor only adds what old readers may ignore
DIGEST_BYTES = 32

HEADER = struct.Struct("<8sHHIQQ")  # magic, major, minor, flags = 0, content bytes, reserved = 0; then its SHA-256
HEADER_BYTES = HEADER.size + DIGEST_BYTES
FOOTER = struct.Struct("<8sQIIQ")  # magic, index offset, index bytes, signature bytes, file bytes; then its SHA-256
FOOTER_BYTES = FOOTER.size + DIGEST_BYTES

RECORD_HEAD = struct.Struct("<BBHI")  # record type, small argument, argument, bytes of the whole record
MEMBER_HEAD = struct.Struct("<Q")  # after RECORD_HEAD(type, role, name bytes, …): content bytes; then the name
CHUNK_HEAD = struct.Struct("<IHH")  # after RECORD_HEAD(type, 0, streams, …): raw bytes, layout, reserved = 0
STREAM = struct.Struct("<HBBII")  # kind, codec, dictionary id (0: none), stored bytes, plain bytes
SIGNATURE = struct.Struct("<32s64s")  # Ed25519 public key, signature

# The index record: its head, its tables in this order, then names (members, segments) and attributes (JSON).
# dictionaries, members, segments, chunks, totals, name bytes, attribute bytes, reserved; header digest, Merkle root
INDEX_HEAD = struct.Struct("<8I32s32s")
DICTIONARY_ENTRY = struct.Struct("<BBHI32s")  # id, reserved, kind, record bytes, digest of the record
MEMBER_ENTRY = struct.Struct("<BBHIQ32s")  # role, reserved, name bytes, segments, content bytes, SHA-256
SEGMENT_ENTRY = struct.Struct("<HHIQQ32s")  # layout, name bytes, chunks, bytes, tensor bytes, SHA-256 of the latter
CHUNK_ENTRY = struct.Struct("<II32s32s")  # record bytes, raw bytes, digest of the record, SHA-256 of the raw bytes
TOTAL_ENTRY = struct.Struct("<HBBIQQQ")  # kind, dictionary id, reserved, streams, plain, stored, without dictionary

CHUNK_OVERHEAD = RECORD_HEAD.size + CHUNK_HEAD.size + DIGEST_BYTES
MEMBER_OVERHEAD = RECORD_HEAD.size + MEMBER_HEAD.size + DIGEST_BYTES
MAX_CHUNK_BYTES = 16 << 20  # raw; bounds the memory of a reader
MAX_STREAMS = 16
MAX_NAME_BYTES = 1024
MAX_DICTIONARY_BYTES = 4 << 20
MAX_ATTRIBUTES_BYTES = 1 << 20
MAX_SIGNATURES = 64
# An archive restores to at most FREE_BYTES and MOST_EXPANSION times its own length: what a few kilobytes cost a reader
# is bounded before anything is decoded. Weights compress less than tenfold; beyond 256, nearly all is one value.
FREE_BYTES = 4 << 20
MOST_EXPANSION = 256
SIGNING_CONTEXT = b"edgepack archive signature v1\0"  # so that a key's signature of anything else never fits


class RecordType(IntEnum):
    """What a record is."""

    MEMBER = 1
    DICTIONARY = 2
    CHUNK = 3
    INDEX = 4
    SIGNATURES = 5


class Role(IntEnum):
    """What a member is for; a reader treats roles that it does not know as `FILE`."""

    FILE = 0
    GGUF = 1  # the first one is the model, others its adapters
    CHAT_TEMPLATE = 2
    LICENCE = 3
    MODEL_CARD = 4
    CERTIFICATE = 5
    RECIPE = 6
    PROJECTOR = 7  # a GGUF of what sees, beside the model that reads

    @classmethod
    def of(cls, number: int) -> Role:
        """The role with this number, or `FILE`."""
        return cls(number) if number in cls._value2member_map_ else cls.FILE


class StreamCodec(IntEnum):
    """How the bytes of a stream are stored. Numbers are never reused; 16 and up are kept for symbol coders."""

    STORED = 0
    ZSTD = 1
    GRID = 16  # integers of a matrix by scale class: `grid_coder`


def sha256(*parts: bytes | bytearray | memoryview) -> bytes:
    """SHA-256 of the concatenation."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def seal(*parts: bytes | memoryview) -> bytes:
    """The parts joined, with their SHA-256 behind them."""
    return b"".join((*parts, sha256(*parts)))


def damaged(where: str, size: int) -> IntegrityError:
    """The error for a block whose digest differs; the text begins with `where`."""
    return IntegrityError(f"{where}: SHA-256 differs: its {size} bytes are damaged")


def unseal(block: bytes | memoryview, where: str) -> memoryview:
    """The bytes of a sealed block without its digest.

    Raises:
        IntegrityError: the digest differs; the text begins with `where`.
    """
    view = memoryview(block)
    body, digest = view[:-DIGEST_BYTES], view[-DIGEST_BYTES:]
    if sha256(body) != digest:
        raise damaged(where, len(view))
    return body


def encode_name(name: str) -> bytes:
    """UTF-8; what was not UTF-8 in a GGUF survives as it was."""
    return name.encode("utf-8", "surrogateescape")


def decode_name(raw: bytes) -> str:
    """The inverse of `encode_name`."""
    return raw.decode("utf-8", "surrogateescape")


def encode_header(content_bytes: int) -> bytes:
    """The first bytes of an archive whose members hold `content_bytes` in all."""
    return seal(HEADER.pack(MAGIC, MAJOR, MINOR, 0, content_bytes, 0))


def decode_header(block: bytes) -> tuple[tuple[int, int], int]:
    """(major, minor) and content bytes of the header.

    Raises:
        ArchiveError: not an archive, truncated, or made by a newer edgepack.
        IntegrityError: the header is damaged.
    """
    if len(MAGIC) <= len(block) and not block.startswith(MAGIC) and (kind := describe(block[:HEAD_BYTES])):
        raise ArchiveError(f"expected an edgepack archive, got {kind}")
    if len(block) < HEADER_BYTES:
        raise ArchiveError(f"expected an archive's header of {HEADER_BYTES} bytes, got {len(block)}")
    magic, major, minor, flags, content_bytes, _reserved = HEADER.unpack_from(block)
    if magic != MAGIC:
        raise ArchiveError(f"expected an edgepack archive (magic {MAGIC!r}), got {magic!r}")
    unseal(block[:HEADER_BYTES], "header")
    if major != MAJOR or flags != 0:
        raise ArchiveError(f"expected format version {MAJOR}, got {major}.{minor}, flags {flags}: update edgepack")
    return (major, minor), content_bytes


@dataclass(frozen=True)
class Footer:
    """The last bytes of an archive: where the index and the signatures stand."""

    index_offset: int
    index_bytes: int
    signature_bytes: int

    @property
    def file_bytes(self) -> int:
        """Length of the whole archive."""
        return self.index_offset + self.index_bytes + self.signature_bytes + FOOTER_BYTES

    def encode(self) -> bytes:
        """The footer's bytes."""
        return seal(FOOTER.pack(END_MAGIC, self.index_offset, self.index_bytes, self.signature_bytes, self.file_bytes))


def decode_footer(block: bytes, file_bytes: int) -> Footer:
    """The footer, checked against the length of the file.

    Raises:
        ArchiveError: the file does not end in a footer (it was truncated) or its lengths contradict the file.
        IntegrityError: the footer is damaged.
    """
    if len(block) < FOOTER_BYTES or block[: len(END_MAGIC)] != END_MAGIC:
        raise ArchiveError("no footer at the end: the archive is truncated or something was appended")
    unseal(block, "footer")
    _magic, index_offset, index_bytes, signature_bytes, declared = FOOTER.unpack_from(block)
    footer = Footer(index_offset, index_bytes, signature_bytes)
    if declared != file_bytes or footer.file_bytes != file_bytes or index_offset < HEADER_BYTES:
        raise ArchiveError(f"footer: expected a file of {declared} bytes, got {file_bytes}")
    return footer


def check_expansion(content_bytes: int, stored_bytes: int) -> None:
    """Refuse contents that are out of proportion to what is stored of them.

    Raises:
        ArchiveError: more than `FREE_BYTES` and `MOST_EXPANSION` times `stored_bytes`.
    """
    if content_bytes > FREE_BYTES + MOST_EXPANSION * stored_bytes:
        raise ArchiveError(
            f"expected contents of at most {FREE_BYTES} bytes and {MOST_EXPANSION} times the archive's {stored_bytes}, "
            f"it declares {content_bytes}"
        )


def decode_record_head(block: bytes | memoryview, where: str) -> tuple[RecordType, int, int, int]:
    """(type, small argument, argument, record bytes) of the record that begins in `block`.

    Raises:
        ArchiveError: unknown type or a length that no record has.
    """
    if len(block) < RECORD_HEAD.size:
        raise ArchiveError(f"{where}: expected a record head of {RECORD_HEAD.size} bytes, archive ends")
    number, small, argument, record_bytes = RECORD_HEAD.unpack_from(block)
    try:
        kind = RecordType(number)
    except ValueError:
        raise ArchiveError(f"{where}: expected a record, got type {number}") from None
    limit = {
        RecordType.MEMBER: RECORD_HEAD.size + MEMBER_HEAD.size + MAX_NAME_BYTES + DIGEST_BYTES,
        RecordType.DICTIONARY: RECORD_HEAD.size + MAX_DICTIONARY_BYTES + DIGEST_BYTES,
        RecordType.CHUNK: CHUNK_OVERHEAD + MAX_STREAMS * STREAM.size + 2 * MAX_CHUNK_BYTES,
        RecordType.INDEX: 2**32 - 1,
        RecordType.SIGNATURES: RECORD_HEAD.size + MAX_SIGNATURES * SIGNATURE.size + DIGEST_BYTES,
    }[kind]
    if not RECORD_HEAD.size + DIGEST_BYTES <= record_bytes <= limit:
        raise ArchiveError(f"{where}: {kind.name.lower()} record of {record_bytes} bytes, the limit is {limit}")
    return kind, small, argument, record_bytes
