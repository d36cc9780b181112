"""What an opened archive holds, as values: members, their segments, their chunks and where each stands.

It reads nothing; `archive` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.packaging import format as archive_format
from edgepack.packaging.format import HEADER_BYTES, MEMBER_OVERHEAD, Role
from edgepack.packaging.index.member_names import check_member_name

if TYPE_CHECKING:
    from edgepack.packaging.index.table import Index, SegmentEntry


@dataclass(frozen=True)
class Chunk:
    """Where a chunk stands.

    Attributes:
        number: in the archive, from 0.
        offset: of its record in the file.
        record_bytes: length of the record.
        start: of its raw bytes in the member.
        raw_bytes: how many they are.
        stored: digest at the end of the record.
        plain: SHA-256 of the raw bytes.
        where: names it in messages.
    """

    number: int
    offset: int
    record_bytes: int
    start: int
    raw_bytes: int
    stored: bytes
    plain: bytes
    where: str


def chunk_cost(chunk: Chunk) -> int:
    """Bytes of memory that decoding a chunk takes, about: what it restores to, or what is stored of it."""
    return max(chunk.raw_bytes, chunk.record_bytes)


@dataclass(frozen=True)
class Segment:
    """A contiguous range of a member: a tensor (with a name) and the padding behind it, or a piece without a name.

    Attributes:
        entry: its row in the index: layout, name, SHA-256.
        start: of its bytes in the member.
        first_chunk: number of its first chunk in the archive.
    """

    entry: SegmentEntry
    start: int
    first_chunk: int


@dataclass(frozen=True)
class Member:
    """A file in the archive.

    Attributes:
        name: a relative path that stays inside its folder.
        role_number: what it is for, as stored.
        bytes: its length.
        sha256: of its bytes, in hexadecimal.
        record_offset: of its record in the archive.
        segments: in order; they fill it.
    """

    name: str
    role_number: int
    bytes: int
    sha256: str
    record_offset: int
    segments: tuple[Segment, ...]

    @property
    def role(self) -> Role:
        """What it is for."""
        return Role.of(self.role_number)

    @property
    def n_chunks(self) -> int:
        """Chunks in all."""
        return sum(segment.entry.n_chunks for segment in self.segments)

    @property
    def first_chunk(self) -> int:
        """Number of its first chunk in the archive; 0 for an empty member."""
        return self.segments[0].first_chunk if self.segments else 0


def place_members(tables: Index) -> tuple[Member, ...]:
    """Members with the offsets of their records and segments.

    Args:
        tables: an index whose sums were checked.

    Raises:
        ArchiveError: a member's name could leave its folder.
    """
    ends = np.concatenate([[0], np.cumsum(tables.chunks["record_bytes"], dtype=np.int64)])
    offset = HEADER_BYTES + sum(dictionary.record_bytes for dictionary in tables.dictionaries)
    segments, members, chunk = iter(tables.segments), [], 0
    for entry in tables.members:
        check_member_name(entry.name)
        record_offset = offset + int(ends[chunk])
        offset += MEMBER_OVERHEAD + len(archive_format.encode_name(entry.name))
        placed, start = [], 0
        for segment in (next(segments) for _ in range(entry.n_segments)):
            placed.append(Segment(segment, start, chunk))
            start += segment.n_bytes
            chunk += segment.n_chunks
        members.append(Member(entry.name, entry.role, entry.n_bytes, entry.sha256.hex(), record_offset, tuple(placed)))
    return tuple(members)
