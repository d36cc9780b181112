"""An archive opened for reading: its index validated, any member, tensor or range read without the rest.

Whoever opens one has a structure that holds together; the bytes of each chunk are checked when they are read.
Writing is left to `pack`, restoring whole files to `unpack`, checking everything to `verify`.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import ArchiveError, CheckFailedError, UsageError
from edgepack.files.source import open_source
from edgepack.gguf.reader import GGUFHeader, parse_header
from edgepack.ordered_threads import ordered_map
from edgepack.packaging import format as archive_format
from edgepack.packaging import records
from edgepack.packaging.byte_source import ByteSource, FileSource
from edgepack.packaging.coding import chunks
from edgepack.packaging.coding.stored_dictionaries import StoredDictionaries
from edgepack.packaging.coding.streams import StreamDecoder
from edgepack.packaging.format import FOOTER_BYTES, HEADER_BYTES, Role
from edgepack.packaging.index import table as index
from edgepack.packaging.index.contents import Chunk, Member, Segment, chunk_cost, place_members
from edgepack.packaging.trust.policy import machine_policy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from typing_extensions import Self

    from edgepack.packaging.trust.policy import TrustPolicy

MAX_MEMBER_IN_MEMORY = 256 << 20
# A header becomes Python objects, many times its length: bounded closer than contents. Vocabularies of 260,000 tokens
# make headers of 15 MB that compress fourfold.
MAX_HEADER_BYTES = 128 << 20
_FREE_HEADER_BYTES = 1 << 20
_MOST_HEADER_EXPANSION = 64


class Archive:
    """A validated archive; use it as a context manager. Reading is thread-safe.

    Attributes:
        path: the file, or what names the source in messages.
        version: (major, minor) of the format.
        index: all tables.
        signatures: (public key, signature) pairs.
        members: in file order; the first is the model.
    """

    def __init__(self, path: Path, trust: TrustPolicy | None, source: ByteSource) -> None:
        self.path = path
        self._source = source
        try:
            self.version, self.content_bytes, self.footer = self._read_ends()
            self.index, self.index_record = self._read_index()
            self.signatures = records.decode_signatures(
                self.read_at(self.footer.index_offset + self.footer.index_bytes, self.footer.signature_bytes)
            )
            if trust is not None:
                trust.check(self.index_record, self.signatures)
            self.members = self._place_members()
        except (ArchiveError, CheckFailedError) as error:
            self.close()
            raise type(error)(f"'{path}': {error}") from None
        except BaseException:
            self.close()
            raise
        self._decoder = StreamDecoder(StoredDictionaries(self))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; nothing can be read afterwards."""
        self._source.close()

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes of the archive from `offset`.

        Raises:
            ArchiveError: it ends before.
        """
        return self._source.read_at(offset, size)

    def _read_ends(self) -> tuple[tuple[int, int], int, archive_format.Footer]:
        size = self._source.size
        version, content_bytes = archive_format.decode_header(self.read_at(0, min(size, HEADER_BYTES)))
        if size < HEADER_BYTES + FOOTER_BYTES:
            raise ArchiveError(f"expected at least {HEADER_BYTES + FOOTER_BYTES} bytes, got {size}: it is truncated")
        archive_format.check_expansion(content_bytes, size)
        return (
            version,
            content_bytes,
            archive_format.decode_footer(self.read_at(size - FOOTER_BYTES, FOOTER_BYTES), size),
        )

    def _read_index(self) -> tuple[index.Index, bytes]:
        offset, size = self.footer.index_offset, self.footer.index_bytes
        head = archive_format.RECORD_HEAD.size + archive_format.INDEX_HEAD.size
        index.check_index_size(self.read_at(offset, min(size, head)), size, offset)
        record = self.read_at(offset, size)
        result = index.decode_index(record, offset)
        index.check_roots(result, self.read_at(0, HEADER_BYTES)[-archive_format.DIGEST_BYTES :])
        return result, record

    def _place_members(self) -> tuple[Member, ...]:
        total = sum(member.n_bytes for member in self.index.members)
        if total != self.content_bytes or not self.index.members:
            raise ArchiveError(f"header: expected {self.content_bytes} bytes of members, the index has {total}")
        return place_members(self.index)

    @property
    def main(self) -> Member:
        """The model: the first member that is a GGUF.

        Raises:
            ArchiveError: there is none.
        """
        for member in self.members:
            if member.role is Role.GGUF:
                return member
        raise ArchiveError(f"'{self.path}': no member is a GGUF")

    @property
    def beside(self) -> tuple[Member, ...]:
        """The GGUFs that belong to the model: adapters, and what sees."""
        main, kinds = self.main, (Role.GGUF, Role.PROJECTOR)
        return tuple(member for member in self.members if member.role in kinds and member is not main)

    def member(self, name: str) -> Member:
        """The member called `name`.

        Raises:
            UsageError: there is none; the text lists those that are.
        """
        for member in self.members:
            if member.name == name:
                return member
        raise UsageError(f"'{self.path}': no member '{name}'; there are {', '.join(m.name for m in self.members)}")

    @cached_property
    def _record_ends(self) -> NDArray[np.int64]:
        """End of chunk i relative to the first chunk of the archive, member records left out."""
        return np.cumsum(self.index.chunks["record_bytes"], dtype=np.int64)

    def chunks(self, member: Member, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """The chunks of a member that hold any of its bytes [start, stop)."""
        stop = member.bytes if stop is None else stop
        if not member.segments:
            return
        table, first = self.index.chunks, member.first_chunk
        before = int(self._record_ends[first - 1]) if first else 0
        base = member.record_offset + archive_format.MEMBER_OVERHEAD + len(archive_format.encode_name(member.name))
        for segment in member.segments:
            if segment.start + segment.entry.n_bytes <= start or segment.start >= stop:
                continue
            raw_start = segment.start
            for number in range(segment.first_chunk, segment.first_chunk + segment.entry.n_chunks):
                row = table[number]
                record_bytes, raw_bytes = int(row["record_bytes"]), int(row["raw_bytes"])
                if raw_start < stop and raw_start + raw_bytes > start:
                    offset = base + int(self._record_ends[number]) - record_bytes - before
                    what = f"tensor '{segment.entry.name}'" if segment.entry.name else "no tensor"
                    where = f"'{member.name}': chunk {number} (bytes {raw_start} to {raw_start + raw_bytes}, {what})"
                    stored, plain = row["stored"].tobytes(), row["plain"].tobytes()
                    yield Chunk(number, offset, record_bytes, raw_start, raw_bytes, stored, plain, where)
                raw_start += raw_bytes

    def read_record(self, chunk: Chunk) -> bytes:
        """The record of a chunk, whole.

        Raises:
            IntegrityError: its digest is not the index's.
        """
        record = self.read_at(chunk.offset, chunk.record_bytes)
        if record[-archive_format.DIGEST_BYTES :] != chunk.stored:
            raise archive_format.damaged(chunk.where, len(record))
        return record

    def read_chunk(self, chunk: Chunk) -> NDArray[np.uint8]:
        """The raw bytes of a chunk; its record's digest is checked.

        Raises:
            IntegrityError: the record is damaged.
            ArchiveError: the record is hostile.
        """
        raw = chunks.decode(self.read_record(chunk), self._decoder, chunk.where)
        if len(raw) != chunk.raw_bytes:
            raise ArchiveError(f"{chunk.where}: expected {chunk.raw_bytes} bytes, its record has {len(raw)}")
        return raw

    def iterate(
        self, member: Member, start: int = 0, stop: int | None = None, threads: int | None = None
    ) -> Iterator[tuple[Chunk, NDArray[np.uint8]]]:
        """(chunk, raw bytes) of every chunk that holds any of bytes [start, stop), decoded on several threads."""
        chosen = self.chunks(member, start, stop)
        return ordered_map(lambda chunk: (chunk, self.read_chunk(chunk)), chosen, threads, size=chunk_cost)

    def read_range(self, member: Member, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a member; only the chunks that hold them are read.

        Raises:
            UsageError: the range leaves the member or is too long for memory.
            IntegrityError: a chunk is damaged.
        """
        if not 0 <= start <= stop <= member.bytes or stop - start > MAX_MEMBER_IN_MEMORY:
            raise UsageError(f"'{member.name}': expected a range inside {member.bytes} bytes, got {start} to {stop}")
        target = bytearray(stop - start)
        for chunk, raw in self.iterate(member, start, stop):
            low, high = max(start, chunk.start), min(stop, chunk.start + chunk.raw_bytes)
            target[low - start : high - start] = raw[low - chunk.start : high - chunk.start].tobytes()
        return bytes(target)

    def read_member(self, name: str) -> bytes:
        """A whole small member: a licence, a chat template."""
        member = self.member(name)
        return self.read_range(member, 0, member.bytes)

    def tensor(self, name: str, member: Member | None = None) -> Segment:
        """Where tensor `name` stands.

        Raises:
            UsageError: there is no such tensor.
        """
        member = self.main if member is None else member
        for segment in member.segments:
            if segment.entry.name == name and name:
                return segment
        raise UsageError(f"'{member.name}': no tensor '{name}'")

    def read_tensor(self, name: str, member: Member | None = None) -> bytes:
        """The bytes of a tensor as the GGUF holds them, without padding; its SHA-256 is checked."""
        member = self.main if member is None else member
        segment = self.tensor(name, member)
        content = self.read_range(member, segment.start, segment.start + segment.entry.tensor_bytes)
        if archive_format.sha256(content) != segment.entry.sha256:
            raise archive_format.damaged(f"tensor '{name}'", len(content))
        return content

    def gguf_header(self, member: Member | None = None) -> GGUFHeader:
        """The header of a GGUF member: metadata and tensor table, read without its tensors.

        Raises:
            ArchiveError: it is out of proportion to what is stored of it.
            GGUFError: it is not sound.
        """
        member = self.main if member is None else member
        end = next((segment.start for segment in member.segments if segment.entry.name), member.bytes)
        stored = sum(chunk.record_bytes for chunk in self.chunks(member, 0, end))
        if end > min(MAX_HEADER_BYTES, _FREE_HEADER_BYTES + _MOST_HEADER_EXPANSION * stored):
            raise ArchiveError(f"'{self.path}': '{member.name}': a header of {end} bytes out of {stored} stored ones")
        return parse_header(self.read_range(member, 0, end), self.path / member.name, member.bytes)


def open_archive(
    path: Path, trust: TrustPolicy | None = None, *, descriptor: int | None = None, source: ByteSource | None = None
) -> Archive:
    """Open and validate the archive at `path`; who signed it is judged before anything in it is used.

    Args:
        path: the archive, or what names `source` in messages.
        trust: whose archives are taken; the user's trust store by default.
        descriptor: of the file, where it is open already; it stays the caller's.
        source: what holds the archive where it is no file; closed with it.

    Raises:
        ArchiveError: not an archive, truncated, hostile, or made by a newer edgepack.
        IntegrityError: header, index or footer are damaged, or a signature is wrong.
        CheckFailedError: nobody trusted signed it.
        UsageError: the trust store cannot be understood.
    """
    opened = FileSource(path, descriptor) if source is None else source
    return Archive(path, machine_policy() if trust is None else trust, opened)


def open_unjudged(path: Path) -> Archive:
    """The same for those who tell what the signatures say (verify, inspect) or mend them (sign): none is judged.

    Raises:
        ArchiveError, IntegrityError: as `open_archive`, but for signatures.
    """
    return Archive(path, None, FileSource(path))


def is_archive(path: Path) -> bool:
    """Whether the file begins as an archive does."""
    try:
        with open_source(path) as stream:
            return stream.read(len(archive_format.MAGIC)) == archive_format.MAGIC
    except (OSError, UsageError):
        return False
