"""Whether the tables of an index fit each other and the file: a reader may then add up lengths without care."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import ArchiveError
from edgepack.packaging.format import HEADER_BYTES, MAX_CHUNK_BYTES
from edgepack.packaging.index.member_names import check_folders
from edgepack.packaging.records import encode_member

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.packaging.index.table import Index


def check_sums(index: Index, index_offset: int) -> None:
    """Check that chunks fill segments, segments fill members and records fill the file, each exactly.

    Members must be able to lie in one folder together: none is the folder of another.

    Raises:
        ArchiveError: they do not; the text names the place.
    """
    raw = index.chunks["raw_bytes"].astype(np.int64)
    if raw.size and (int(raw.min()) == 0 or int(raw.max()) > MAX_CHUNK_BYTES):
        raise ArchiveError(f"index: expected chunks of 1 to {MAX_CHUNK_BYTES} raw bytes")
    _check_segments(index, raw)
    _check_members(index)
    end = HEADER_BYTES + sum(dictionary.record_bytes for dictionary in index.dictionaries)
    end += sum(len(encode_member(m.role, m.name, m.n_bytes)) for m in index.members)
    end += int(index.chunks["record_bytes"].astype(np.int64).sum())
    if end != index_offset:
        raise ArchiveError(f"index: its records end at {end}, the index begins at {index_offset}")


def _check_segments(index: Index, raw: NDArray[np.int64]) -> None:
    ends = np.concatenate([[0], np.cumsum(raw)])
    first = 0
    for number, segment in enumerate(index.segments):
        last = first + segment.n_chunks
        if last > len(raw) or segment.n_chunks == 0:
            raise ArchiveError(f"index: segment {number} '{segment.name}': {segment.n_chunks} chunks are not there")
        if int(ends[last] - ends[first]) != segment.n_bytes or segment.tensor_bytes > segment.n_bytes:
            got = int(ends[last] - ends[first])
            raise ArchiveError(f"index: segment {number} '{segment.name}': expected {segment.n_bytes} bytes, got {got}")
        first = last
    if first != len(raw):
        raise ArchiveError(f"index: {len(raw) - first} chunks belong to no segment")


def _check_members(index: Index) -> None:
    first, names = 0, set()
    for member in index.members:
        last = first + member.n_segments
        got = sum(segment.n_bytes for segment in index.segments[first:last])
        if last > len(index.segments) or got != member.n_bytes:
            raise ArchiveError(f"index: member '{member.name}': expected {member.n_bytes} bytes, got {got}")
        first = last
        names.add(member.name)
    if first != len(index.segments) or len(names) != len(index.members):
        raise ArchiveError("index: segments that belong to no member, or a member name that occurs twice")
    check_folders(names)
