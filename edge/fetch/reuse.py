"""Records that are on this machine already: in an earlier version, or in what an interrupted fetch left.

Every one is read and its digest checked before it counts. Where missing ones come from is left to `download`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from edgepack.edge.fetch.stored_records import StoredRecord, stored_records
from edgepack.errors import ArchiveError, IntegrityError
from edgepack.packaging.archive import open_archive
from edgepack.packaging.trust.policy import ANYONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from typing_extensions import Self

    from edgepack.packaging.archive import Archive


class LocalRecords:
    """The records of archives on this machine, by digest; a context manager that keeps them open."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._archives: list[Archive] = []
        self._places: dict[tuple[bytes, int], tuple[Archive, StoredRecord]] = {}
        for path in paths:
            self._add(path)

    def _add(self, path: Path) -> None:
        try:
            archive = open_archive(path, ANYONE)  # each record is held against the digest that is wanted
        except (ArchiveError, IntegrityError):
            return  # no archive, or no longer one: it has nothing to give
        self._archives.append(archive)
        for record in stored_records(archive):
            self._places.setdefault((record.digest, record.n_bytes), (archive, record))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for archive in self._archives:
            archive.close()

    def read(self, record: StoredRecord) -> bytes | None:
        """The bytes of a record that equals `record`, or None where there is none that is still whole."""
        archive, place = self._places.get((record.digest, record.n_bytes), (None, None))
        if archive is None or place is None:
            return None
        content = archive.read_at(place.offset, place.n_bytes)
        return content if record.holds(content) else None


def already_there(descriptor: int, records: Sequence[StoredRecord]) -> set[int]:
    """Offsets of those `records` that stand whole at their places in an open file."""
    return {record.offset for record in records if record.holds(os.pread(descriptor, record.n_bytes, record.offset))}


def copy_equal(
    local: LocalRecords, missing: Iterable[StoredRecord], write: Callable[[int, bytes], object]
) -> tuple[list[StoredRecord], int]:
    """Write what `local` has of the missing records; returns those that still miss, and the bytes copied."""
    left, copied = [], 0
    for record in missing:
        content = local.read(record)
        if content is None:
            left.append(record)
        else:
            write(record.offset, content)
            copied += len(content)
    return left, copied
