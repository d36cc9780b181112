"""Bytes of a member at any place, decoded when they are asked for and verified before they are given.

A reader that goes through a tensor finds the chunks ahead already decoded, on several threads; memory is a few
chunks. What reads is left to the caller; whole files are `unpack`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.ordered_threads import ordered_map
from edgepack.packaging.format import damaged, sha256
from edgepack.packaging.index.contents import chunk_cost

if TYPE_CHECKING:
    from collections.abc import Generator

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.packaging.archive import Archive
    from edgepack.packaging.index.contents import Chunk, Member, Segment

    Decoded = tuple[Chunk, NDArray[np.uint8]]

_KEPT_BYTES = 16 << 20  # of decoded chunks: C's buffered streams go back a little, into the tensor before, when moved


class MemberReader:
    """A member of an open archive, read from any place; not thread-safe. Close it before the archive.

    Args:
        archive: stays open meanwhile.
        member: of the archive.
        threads: that decode; None for one a core.
    """

    def __init__(self, archive: Archive, member: Member, threads: int | None = None) -> None:
        self._archive, self._member, self._threads = archive, member, threads
        self._kept: list[Decoded] = []
        self._ahead: Generator[Decoded, None, None] | None = None
        self._next = -1  # where the chunk begins that `_ahead` gives next

    @property
    def bytes(self) -> int:
        """Length of the member."""
        return self._member.bytes

    def read(self, offset: int, size: int) -> memoryview:
        """Bytes from `offset`, at least one and at most `size`, as many as one chunk holds; none behind the end.

        Raises:
            IntegrityError: the chunk is damaged, or restores to other bytes than the archive says.
            ArchiveError: the chunk is hostile.
        """
        if not 0 <= offset < self._member.bytes or size <= 0:
            return memoryview(b"")
        chunk, raw = self._chunk(offset)
        start = offset - chunk.start
        return raw[start : start + size].data

    def close(self) -> None:
        """Stop decoding ahead."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        self._kept.clear()

    def _chunk(self, offset: int) -> Decoded:
        for chunk, raw in self._kept:
            if chunk.start <= offset < chunk.start + chunk.raw_bytes:
                return chunk, raw
        found = next(self._ahead, None) if self._ahead is not None and offset == self._next else None
        if found is None:
            found = next(self._move(offset))
        self._next = found[0].start + found[0].raw_bytes
        self._kept.append(found)
        while len(self._kept) > 2 and sum(chunk.raw_bytes for chunk, _raw in self._kept) > _KEPT_BYTES:
            del self._kept[0]
        return found

    def _move(self, offset: int) -> Generator[Decoded, None, None]:
        """Decode from the chunk at `offset` to the end of its segment."""
        if self._ahead is not None:
            self._ahead.close()
        segment = self._segment(offset)
        chunks = self._archive.chunks(self._member, offset, segment.start + segment.entry.n_bytes)
        if segment.entry.n_chunks == 1:  # threads would cost more than they save
            self._ahead = (self._decode(chunk) for chunk in chunks)
        else:
            self._ahead = ordered_map(self._decode, chunks, self._threads, size=chunk_cost)
        return self._ahead

    def _segment(self, offset: int) -> Segment:
        return next(s for s in self._member.segments if s.start <= offset < s.start + s.entry.n_bytes)

    def _decode(self, chunk: Chunk) -> Decoded:
        raw = self._archive.read_chunk(chunk)
        if sha256(raw.data) != chunk.plain:
            raise damaged(chunk.where, len(raw))
        return chunk, raw
