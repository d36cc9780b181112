"""Checks every byte of an archive and says where it is wrong; it restores nothing to disk.

Quick: the SHA-256 of every record, so the speed is SHA-256's. Deep: restores everything in memory too and
checks chunks, tensors and files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.errors import ArchiveError, IntegrityError
from edgepack.ordered_threads import ordered_map
from edgepack.packaging import format as archive_format
from edgepack.packaging import records
from edgepack.packaging.archive import Archive, open_unjudged
from edgepack.packaging.coding.stored_dictionaries import dictionary_places, read_dictionary
from edgepack.packaging.format import sha256
from edgepack.packaging.index.contents import chunk_cost
from edgepack.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgepack.packaging.index.contents import Chunk, Member, Segment
    from edgepack.packaging.index.table import DictionaryEntry


@dataclass(frozen=True)
class Problem:
    """Something wrong: `where` names the place, `what` the rule that it breaks."""

    where: str
    what: str


def verify_archive(
    path: Path, *, deep: bool = False, threads: int | None = None, progress: Progress = silent
) -> tuple[Problem, ...]:
    """Check an archive's bytes; nothing is raised for what is wrong with it. Who signed is left to `trust.policy`.

    Args:
        path: the archive.
        deep: restore every chunk in memory as well.
        threads: workers; None for one a core.
        progress: told of bytes checked.

    Returns:
        every problem that was found; none for a sound archive.
    """
    try:
        with open_unjudged(path) as archive:
            return tuple(_problems(archive, deep, threads, progress))
    except (ArchiveError, IntegrityError) as error:
        return (Problem("structure", str(error)),)


def _problems(archive: Archive, deep: bool, threads: int | None, progress: Progress) -> Iterator[Problem]:
    for offset, entry in dictionary_places(archive.index):
        yield from _check_dictionary(archive, offset, entry)
    total = archive.content_bytes if deep else archive.footer.index_offset
    with progress("verifying", total) as advance:
        for member in archive.members:
            yield from _check_member_record(archive, member)
            yield from (_check_deep if deep else _check_records)(archive, member, threads, advance)


def _check_dictionary(archive: Archive, offset: int, entry: DictionaryEntry) -> Iterator[Problem]:
    try:
        read_dictionary(archive, offset, entry)
    except IntegrityError as error:
        yield Problem(f"dictionary {entry.id}", str(error))


def _check_member_record(archive: Archive, member: Member) -> Iterator[Problem]:
    expected = records.encode_member(member.role_number, member.name, member.bytes)
    if archive.read_at(member.record_offset, len(expected)) != expected:
        yield Problem(f"member '{member.name}'", "its record differs from the index")


def _check_records(
    archive: Archive, member: Member, threads: int | None, advance: Callable[[int], object]
) -> Iterator[Problem]:
    def check(chunk: Chunk) -> tuple[Chunk, str | None]:
        try:
            archive_format.unseal(archive.read_record(chunk), chunk.where)
        except (IntegrityError, ArchiveError) as error:
            return chunk, str(error)
        return chunk, None

    for chunk, problem in ordered_map(check, archive.chunks(member), threads, size=chunk_cost):
        advance(chunk.record_bytes)
        if problem is not None:
            yield Problem(chunk.where, problem.removeprefix(f"{chunk.where}: "))


def _check_deep(
    archive: Archive, member: Member, threads: int | None, advance: Callable[[int], object]
) -> Iterator[Problem]:
    def restore(chunk: Chunk) -> tuple[Chunk, memoryview, str | None]:
        try:
            raw = archive.read_chunk(chunk).data
        except (IntegrityError, ArchiveError) as error:
            return chunk, memoryview(b""), str(error).removeprefix(f"{chunk.where}: ")
        return chunk, raw, None if sha256(raw) == chunk.plain else "SHA-256 of its restored bytes differs"

    whole, sound = hashlib.sha256(), True
    restored = ordered_map(restore, archive.chunks(member), threads, size=chunk_cost)
    for segment in member.segments:
        digest, left, segment_sound = hashlib.sha256(), segment.entry.tensor_bytes, True
        for _ in range(segment.entry.n_chunks):
            chunk, raw, problem = next(restored)
            advance(chunk.raw_bytes)
            if problem is not None:
                segment_sound = sound = False
                yield Problem(chunk.where, problem)
            whole.update(raw)
            digest.update(raw[:left])
            left -= min(left, len(raw))
        if segment_sound and digest.digest() != segment.entry.sha256:
            yield Problem(_segment_name(member, segment), "SHA-256 of the restored tensor differs")
    if sound and whole.hexdigest() != member.sha256:
        yield Problem(f"member '{member.name}'", "SHA-256 of the restored file differs")


def _segment_name(member: Member, segment: Segment) -> str:
    place = f"bytes {segment.start} to {segment.start + segment.entry.n_bytes}"
    return f"tensor '{segment.entry.name}'" if segment.entry.name else f"'{member.name}': {place}"
