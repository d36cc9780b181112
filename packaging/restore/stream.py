"""Restores a member from an archive that arrives through a pipe: every byte is read once, in order.

Each record is checked before it is decoded; the index at the end must then agree with all that was seen, so
the file appears only when the whole archive has arrived and was right. Memory holds a few chunks at a time.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

import zstandard

from edgepack.errors import ArchiveError, IntegrityError, UsageError
from edgepack.files.claim import claimed_output
from edgepack.files.output import atomic_output
from edgepack.ordered_threads import ordered_map
from edgepack.packaging import format as archive_format
from edgepack.packaging import records
from edgepack.packaging.coding import chunks
from edgepack.packaging.coding.streams import StreamDecoder
from edgepack.packaging.format import DIGEST_BYTES, RECORD_HEAD, RecordType, Role, unseal
from edgepack.packaging.index import table as index
from edgepack.packaging.index.member_names import check_member_name
from edgepack.packaging.restore.unpack import UnpackResult
from edgepack.packaging.trust.policy import machine_policy
from edgepack.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.packaging.trust.policy import TrustPolicy

_MAX_INDEX_BYTES = 1 << 30  # the index of an archive of about ten terabytes
_AHEAD_BYTES = 1 << 18  # an archive may begin with what compresses best: its length is not known yet
_MAX_END_BYTES = archive_format.FOOTER_BYTES + (1 << 16)


@dataclass
class _Arrived:
    """What has come through the pipe so far."""

    stream: BinaryIO
    position: int = 0
    header_digest: bytes = b""
    dictionaries: dict[int, zstandard.ZstdCompressionDict] = field(default_factory=dict)
    dictionary_digests: list[bytes] = field(default_factory=list)
    members: list[tuple[int, str, int]] = field(default_factory=list)
    stored: list[bytes] = field(default_factory=list)

    def take(self, count: int, what: str) -> bytes:
        """Exactly `count` bytes, or an error that says where the pipe ended."""
        parts, left = [], count
        while left:
            block = self.stream.read(min(left, 1 << 20))
            if not block:
                raise ArchiveError(f"the pipe ended after {self.position + count - left} bytes, inside {what}")
            parts.append(block)
            left -= len(block)
        self.position += count
        return b"".join(parts)

    def record(self) -> tuple[RecordType, bytes]:
        """The next record, whole; chunk records are not unsealed here but by the worker that decodes them."""
        where = f"the record at {self.position}"
        head = self.take(RECORD_HEAD.size, where)
        kind, _small, _argument, size = archive_format.decode_record_head(head, where)
        if kind is RecordType.INDEX and size > _MAX_INDEX_BYTES:
            raise ArchiveError(f"index: expected at most {_MAX_INDEX_BYTES} bytes, got {size}")
        return kind, head + self.take(size - RECORD_HEAD.size, where)


def unpack_stream(
    stream: BinaryIO,
    out: Path,
    *,
    member: str | None = None,
    trust: TrustPolicy | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
) -> UnpackResult:
    """Restore a member of the archive that `stream` delivers.

    Args:
        stream: read to its end, never sought.
        out: the file to write, or a folder, in which the member gets its own name.
        member: its name; the first GGUF by default.
        trust: whose archives are taken; the user's trust store by default.
        force: replace a file that is there already.
        threads: workers; None for one a core.
        progress: told of bytes restored.

    Raises:
        ArchiveError: the pipe ended early, or what came is not an archive.
        IntegrityError: bytes differ from their digest. No output appears.
        CheckFailedError: nobody trusted signed. No output appears.
        UsageError: there is no such member, or the output folder is absent.
    """
    started = time.perf_counter()
    trust = machine_policy() if trust is None else trust
    arrived = _Arrived(stream)
    header = arrived.take(archive_format.HEADER_BYTES, "the header")
    arrived.header_digest = header[-DIGEST_BYTES:]
    archive_format.decode_header(header)
    name, size = _find_member(arrived, member)
    path = out / name.rsplit("/", 1)[-1] if out.is_dir() else out
    with claimed_output(path, size, force=force), atomic_output(path) as target:
        with progress("unpacking", size) as advance:
            digest = _restore(arrived, size, target, threads, advance)
        _check_end(arrived, name, digest, trust)
    return UnpackResult(path, size, digest.hex(), time.perf_counter() - started)


def _find_member(arrived: _Arrived, wanted: str | None) -> tuple[str, int]:
    """Read records until the wanted member begins; returns its name and length."""
    while True:
        kind, record = arrived.record()
        if kind is RecordType.DICTIONARY:
            _add_dictionary(arrived, record)
        elif kind is RecordType.CHUNK:
            _note_chunk(arrived, record)
        elif kind is RecordType.MEMBER:
            role, name, size = _add_member(arrived, record)
            if name == wanted or (wanted is None and Role.of(role) is Role.GGUF):
                return name, size
        else:
            names = ", ".join(name for _role, name, _size in arrived.members)
            raise UsageError(f"no member '{wanted or 'GGUF'}'; there are {names}")


def _add_dictionary(arrived: _Arrived, record: bytes) -> None:
    body = unseal(record, "dictionary")
    identifier = archive_format.decode_record_head(body, "dictionary")[1]
    arrived.dictionaries[identifier] = zstandard.ZstdCompressionDict(bytes(body[RECORD_HEAD.size :]))
    arrived.dictionary_digests.append(record[-DIGEST_BYTES:])


def _add_member(arrived: _Arrived, record: bytes) -> tuple[int, str, int]:
    entry = records.decode_member(record, f"member {len(arrived.members)}")
    check_member_name(entry[1])
    arrived.members.append(entry)
    return entry


def _note_chunk(arrived: _Arrived, record: bytes) -> None:
    unseal(record, f"chunk {len(arrived.stored)}")
    arrived.stored.append(record[-DIGEST_BYTES:])


def _restore(
    arrived: _Arrived, size: int, target: BinaryIO, threads: int | None, advance: Callable[[int], object]
) -> bytes:
    """Decode the chunks of the member that has begun; returns its SHA-256."""
    decoder, whole = StreamDecoder(arrived.dictionaries), hashlib.sha256()

    def decode(piece: tuple[int, bytes]) -> NDArray[np.uint8]:
        return chunks.decode(piece[1], decoder, f"chunk {piece[0]}")

    done = 0
    for raw in ordered_map(decode, _chunk_records(arrived, size), threads, size=_cost):
        done += len(raw)
        archive_format.check_expansion(done, _AHEAD_BYTES + arrived.position)
        target.write(raw.data)
        whole.update(raw.data)
        advance(len(raw))
        del raw  # not kept while the next one is decoded: chunks may be large
    if done != size:
        raise ArchiveError(f"expected {size} bytes of the member, its chunks hold {done}")
    return whole.digest()


def _cost(piece: tuple[int, bytes]) -> int:
    """Bytes of memory that decoding a record takes, about."""
    return max(len(piece[1]), records.decode_chunk_head(piece[1], f"chunk {piece[0]}").raw_bytes)


def _chunk_records(arrived: _Arrived, size: int) -> Iterator[tuple[int, bytes]]:
    """(number, record) of the chunks that hold the next `size` raw bytes."""
    left = size
    while left > 0:
        kind, record = arrived.record()
        where = f"chunk {len(arrived.stored)}"
        if kind is not RecordType.CHUNK:
            raise ArchiveError(f"{where}: expected a chunk, got {kind.name.lower()}")
        left -= records.decode_chunk_head(record, where).raw_bytes
        number = len(arrived.stored)
        arrived.stored.append(record[-DIGEST_BYTES:])
        yield number, record


def _check_end(arrived: _Arrived, name: str, digest: bytes, trust: TrustPolicy) -> None:
    """Read what is left and hold the index against everything that came."""
    while True:
        offset = arrived.position
        kind, record = arrived.record()
        if kind is RecordType.MEMBER:
            _add_member(arrived, record)
        elif kind is RecordType.CHUNK:
            _note_chunk(arrived, record)
        elif kind is RecordType.INDEX:
            break
        else:
            raise ArchiveError(f"expected chunks and an index at {offset}, got {kind.name.lower()}")
    tables = index.decode_index(record, offset)
    index.check_roots(tables, arrived.header_digest)
    signatures = _check_footer(arrived, offset, len(record))
    trust.check(record, signatures)
    if (
        [bytes(row) for row in tables.chunks["stored"]] != arrived.stored
        or [entry.digest for entry in tables.dictionaries] != arrived.dictionary_digests
        or [(entry.role, entry.name, entry.n_bytes) for entry in tables.members] != arrived.members
    ):
        raise IntegrityError("index: it differs from the records that came before it")
    if next(entry.sha256 for entry in tables.members if entry.name == name) != digest:
        raise IntegrityError(f"'{name}': SHA-256 of the restored file differs from the archive's")


def _check_footer(arrived: _Arrived, index_offset: int, index_bytes: int) -> list[tuple[bytes, bytes]]:
    """Read the end of the pipe; returns the signatures."""
    end = arrived.stream.read(_MAX_END_BYTES)
    signature_bytes = len(end) - archive_format.FOOTER_BYTES
    footer = archive_format.decode_footer(end[max(0, signature_bytes) :], arrived.position + len(end))
    if (footer.index_offset, footer.index_bytes) != (index_offset, index_bytes):
        raise ArchiveError(f"footer: expected an index at {index_offset}, it names {footer.index_offset}")
    return records.decode_signatures(end[:signature_bytes])
