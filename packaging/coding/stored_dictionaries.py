"""The dictionary records of an opened archive: where they stand, what they hold, checked when they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import zstandard

from edgepack.packaging import format as archive_format
from edgepack.packaging import records
from edgepack.packaging.format import HEADER_BYTES, unseal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepack.packaging.archive import Archive
    from edgepack.packaging.index.table import DictionaryEntry, Index


class StoredDictionaries:
    """The dictionaries of an archive by id, each read when it is first needed."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._places = {entry.id: (offset, entry) for offset, entry in dictionary_places(archive.index)}

    def __getitem__(self, identifier: int) -> zstandard.ZstdCompressionDict:
        """The dictionary; raises KeyError when there is none, IntegrityError when it is damaged."""
        return zstandard.ZstdCompressionDict(read_dictionary(self._archive, *self._places[identifier]))


def dictionary_places(tables: Index) -> Iterator[tuple[int, DictionaryEntry]]:
    """(offset in the file, entry) of every dictionary."""
    offset = HEADER_BYTES
    for entry in tables.dictionaries:
        yield offset, entry
        offset += entry.record_bytes


def read_dictionary(archive: Archive, offset: int, entry: DictionaryEntry) -> bytes:
    """The content of a dictionary record.

    Raises:
        IntegrityError: the record is damaged or is not the index's.
    """
    record = archive.read_at(offset, entry.record_bytes)
    where = f"dictionary {entry.id}"
    body = unseal(record, where)
    expected = records.encode_dictionary_head(entry.id, entry.kind, entry.record_bytes)
    if record[-archive_format.DIGEST_BYTES :] != entry.digest or body[: len(expected)] != expected:
        raise archive_format.damaged(where, len(record))
    return bytes(body[len(expected) :])
