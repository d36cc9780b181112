"""An older archive whose chunks and dictionaries a new one takes over where the content is the same.

The new archive then differs from the old one only where the files do, so a patch between them is small, and
nothing that is already known is compressed again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.packaging.coding.chunks import EncodedChunk
from edgepack.packaging.coding.dictionaries import Dictionary
from edgepack.packaging.coding.stored_dictionaries import dictionary_places, read_dictionary
from edgepack.packaging.records import decode_chunk_head

if TYPE_CHECKING:
    from edgepack.packaging.archive import Archive
    from edgepack.packaging.coding.block import Layout
    from edgepack.packaging.index.contents import Chunk


class BaseArchive:
    """Chunks of an opened archive by the SHA-256 of what they restore to; safe to share between threads."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._chunks: dict[bytes, Chunk] = {
            chunk.plain: chunk for member in archive.members for chunk in archive.chunks(member)
        }

    def dictionaries(self) -> tuple[Dictionary, ...]:
        """All of them, with their ids: records that are taken over refer to them."""
        return tuple(
            Dictionary(entry.id, entry.kind, read_dictionary(self._archive, offset, entry))
            for offset, entry in dictionary_places(self._archive.index)
        )

    def encoded(self, raw: bytes, plain: bytes, layout: Layout) -> EncodedChunk | None:
        """The record that restores to `raw`, or None when there is none in this layout.

        Its restored bytes are compared with `raw`, so that nothing of the old archive is trusted.

        Raises:
            IntegrityError, ArchiveError: the old archive is damaged there.
        """
        chunk = self._chunks.get(plain)
        if chunk is None or self._archive.read_chunk(chunk).tobytes() != raw:
            return None
        record = self._archive.read_record(chunk)
        head = decode_chunk_head(record, chunk.where)
        if head.layout not in (layout.id, 0):
            return None
        return EncodedChunk(raw, plain, record, tuple((entry, entry.stored_bytes) for entry in head.streams))
