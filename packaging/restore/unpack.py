"""Restores a member of an archive into a file, bit for bit, checked while it is written, continued where it stopped.

Reading the archive is left to `archive`; from a pipe, to `stream_unpack`.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from edgepack.errors import IntegrityError
from edgepack.files.output import atomic_output
from edgepack.files.resumable import resumable_output
from edgepack.ordered_threads import ordered_map
from edgepack.packaging.archive import Archive, open_archive
from edgepack.packaging.format import sha256, unseal
from edgepack.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgepack.packaging.index.contents import Chunk, Member, Segment
    from edgepack.packaging.trust.policy import TrustPolicy

_CHECKED_FIRST_BYTES = 32 << 20  # SHA-256 takes 20 to 50 ms for them


@dataclass(frozen=True)
class UnpackResult:
    """What unpacking gave.

    Attributes:
        output: the restored file.
        bytes: its length.
        sha256: its SHA-256 in hexadecimal, which is the archive's.
        seconds: wall time.
        kept_bytes: how much an interrupted run had left and was checked and kept.
        beside: other GGUFs of the archive (adapters, projectors) that were restored beside the model.
    """

    output: Path
    bytes: int
    sha256: str
    seconds: float
    kept_bytes: int = 0
    beside: tuple[Path, ...] = ()


def unpack_archive(
    archive: Path,
    out: Path,
    *,
    member: str | None = None,
    trust: TrustPolicy | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> UnpackResult:
    """Restore a member of an archive.

    Args:
        archive: the `.edgepack`.
        out: the file to write; it appears only when it is whole, checked and on disk.
        member: its name; the model by default.
        trust: whose archives are taken; the user's trust store by default.
        threads: workers; None for one a core.
        progress: told of bytes restored.

    Raises:
        ArchiveError: the archive is truncated, hostile or newer.
        IntegrityError: bytes differ from their digest; the text names the chunk. No output appears.
        CheckFailedError: nobody trusted signed. No output appears.
        UsageError: no such member, or the output folder is absent.
        ResourceError: the disk is too small or became full; what was written is kept for the next run.
    """
    with open_archive(archive, trust) as opened:
        return restore_member(opened, out, member=member, threads=threads, progress=progress)


def restore_member(
    archive: Archive, out: Path, *, member: str | None = None, threads: int | None = None, progress: Progress = silent
) -> UnpackResult:
    """Restore a member of an archive that is open, so that what was looked at is what is restored.

    Arguments and errors are those of `unpack_archive`; signatures are not looked at.
    """
    started = time.perf_counter()
    chosen = archive.main if member is None else archive.member(member)
    with resumable_output(out, chosen.bytes) as stream, progress("unpacking", chosen.bytes) as advance:
        kept = _restore(archive, chosen, stream, threads, advance)
    return UnpackResult(out, chosen.bytes, chosen.sha256, time.perf_counter() - started, kept)


def extract_tensor(archive: Archive, name: str, out: Path) -> Segment:
    """Write the bytes of one tensor of the model, as the GGUF holds them; only its chunks are read.

    Raises:
        UsageError: there is no such tensor, or the output folder is absent.
        IntegrityError: bytes differ from their digest. No output appears.
    """
    segment = archive.tensor(name)
    digest, left = hashlib.sha256(), segment.entry.tensor_bytes
    with atomic_output(out, left) as stream:
        for _chunk, raw in archive.iterate(archive.main, segment.start, segment.start + left):
            content = raw[:left].data
            stream.write(content)
            digest.update(content)
            left -= len(content)
        if digest.digest() != segment.entry.sha256:
            raise IntegrityError(f"tensor '{name}': SHA-256 of the restored bytes differs from the archive's")
    return segment


def _restore(
    archive: Archive, member: Member, stream: BinaryIO, threads: int | None, advance: Callable[[int], object]
) -> int:
    """Keep what is right, write the rest; returns the bytes that were kept."""
    whole = hashlib.sha256()
    kept = _keep(archive, member, stream, whole, advance)
    stream.seek(kept)
    stream.truncate()
    if kept < member.bytes:
        _check_records(archive, member, kept, threads)
        for chunk, raw in archive.iterate(member, kept, threads=threads):
            stream.write(raw.data)
            whole.update(raw.data)
            advance(chunk.raw_bytes)
            del raw  # not kept while the next one is decoded: chunks may be large
    if whole.hexdigest() != member.sha256:
        raise IntegrityError(f"'{member.name}': SHA-256 of the restored file differs from the archive's")
    return kept


def _check_records(archive: Archive, member: Member, start: int, threads: int | None) -> None:
    """Digests of what is stored, before anything is decoded, which takes ten times as long; of small archives only.

    A large one would be read twice from the disk; each of its records is still checked before it is decoded.

    Raises:
        IntegrityError: a record is damaged.
    """
    chunks = list(archive.chunks(member, start))
    if sum(chunk.record_bytes for chunk in chunks) > _CHECKED_FIRST_BYTES:
        return

    def check(chunk: Chunk) -> None:
        unseal(archive.read_record(chunk), chunk.where)

    for _ in ordered_map(check, chunks, threads, size=lambda chunk: chunk.record_bytes):
        pass


def _keep(archive: Archive, member: Member, stream: BinaryIO, whole: Any, advance: Callable[[int], object]) -> int:
    """Bytes at the beginning of `stream` that are whole chunks of the member, by their SHA-256."""
    for chunk in archive.chunks(member):
        content = stream.read(chunk.raw_bytes)
        if not _matches(chunk, content):
            return chunk.start
        whole.update(content)
        advance(chunk.raw_bytes)
    return member.bytes


def _matches(chunk: Chunk, content: bytes) -> bool:
    return len(content) == chunk.raw_bytes and sha256(content) == chunk.plain
