"""The records of an archive as stretches of its file, each with the digest that the index gives it.

Members' records are not among them: they follow from the index. Reading them is left to `reuse` and `download`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.packaging.format import DIGEST_BYTES, HEADER_BYTES, sha256
from edgepack.packaging.records import encode_member

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edgepack.packaging.archive import Archive

RUN_BYTES = 8 << 20  # of neighbours that are asked for in one request


@dataclass(frozen=True)
class StoredRecord:
    """Bytes [offset, offset + n_bytes) of an archive.

    Attributes:
        offset: in the archive's file.
        n_bytes: length, the digest included.
        digest: its last 32 bytes: the SHA-256 of those before.
        where: names it in messages.
    """

    offset: int
    n_bytes: int
    digest: bytes
    where: str

    def holds(self, content: bytes | bytearray | memoryview) -> bool:
        """Whether `content` is this record, every byte."""
        view = memoryview(content)
        return (
            len(view) == self.n_bytes
            and view[-DIGEST_BYTES:] == self.digest
            and sha256(view[:-DIGEST_BYTES]) == self.digest
        )


def stored_records(archive: Archive) -> Iterator[StoredRecord]:
    """Dictionaries and chunks, in file order."""
    offset = HEADER_BYTES
    for dictionary in archive.index.dictionaries:
        yield StoredRecord(offset, dictionary.record_bytes, dictionary.digest, f"dictionary {dictionary.id}")
        offset += dictionary.record_bytes
    for member in archive.members:
        for chunk in archive.chunks(member):
            yield StoredRecord(chunk.offset, chunk.record_bytes, chunk.stored, chunk.where)


def known_parts(archive: Archive) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of all that an opened archive knows already: header, members' records, index to footer."""
    yield 0, archive.read_at(0, HEADER_BYTES)
    for member in archive.members:
        yield member.record_offset, encode_member(member.role_number, member.name, member.bytes)
    footer = archive.footer
    yield footer.index_offset, archive.index_record
    end = footer.index_offset + footer.index_bytes
    yield end, archive.read_at(end, footer.file_bytes - end)


def runs(records: Iterable[StoredRecord]) -> Iterator[list[StoredRecord]]:
    """Neighbours together, up to `RUN_BYTES` or one record: what one request asks for."""
    run: list[StoredRecord] = []
    for record in records:
        end = record.offset + record.n_bytes
        if run and (run[-1].offset + run[-1].n_bytes != record.offset or end - run[0].offset > RUN_BYTES):
            yield run
            run = []
        run.append(record)
    if run:
        yield run
