"""Cuts any file into pieces that stay the same when other parts of the file change; it writes nothing.

An archive is cut into its records, a GGUF into its chunks (so a longer header moves tensors but changes none),
anything else into equal lengths.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.files.source import FileState, open_source
from edgepack.packaging import records
from edgepack.packaging.archive import Archive, is_archive, open_archive
from edgepack.packaging.coding.stored_dictionaries import dictionary_places
from edgepack.packaging.delta.patch_format import FINGERPRINT_BYTES, MAX_PIECE_BYTES
from edgepack.packaging.format import HEADER_BYTES, sha256
from edgepack.packaging.segments import plan_member

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgepack.packaging.trust.policy import TrustPolicy


@dataclass(frozen=True)
class Piece:
    """Bytes [start, start + bytes) of a file; `name` says what they are, the same in every version of the file."""

    name: str
    start: int
    bytes: int


@dataclass(frozen=True)
class CutFile:
    """A file cut into pieces: each with its SHA-256, the SHA-256 of all, and the file's state when it was opened."""

    path: Path
    pieces: tuple[tuple[Piece, bytes], ...]
    sha256: bytes
    bytes: int
    state: FileState


def fingerprint(descriptor: int, size: int) -> bytes:
    """SHA-256 of the first and the last 64 KiB of a file: cheap, and different for every GGUF and archive."""
    last = max(0, size - FINGERPRINT_BYTES)
    return sha256(os.pread(descriptor, FINGERPRINT_BYTES, 0), os.pread(descriptor, FINGERPRINT_BYTES, last))


def cut_file(path: Path, advance: Callable[[int], object], trust: TrustPolicy | None = None) -> CutFile:
    """Read a file once and digest its pieces.

    Raises:
        UsageError: it is not there.
        ArchiveError, IntegrityError: it is an archive that does not hold together.
        CheckFailedError: it is an archive that nobody trusted signed.
    """
    if not path.is_file():
        raise UsageError(f"'{path}': no such file")
    whole, pieces, size = hashlib.sha256(), [], 0
    with open_source(path) as stream:
        state = FileState.of(stream.fileno())
        for piece in _bounded(_pieces(path, trust)):
            content = stream.read(piece.bytes)
            if len(content) != piece.bytes:
                raise UsageError(f"'{path}': it changed while being read")
            whole.update(content)
            pieces.append((piece, hashlib.sha256(content).digest()))
            size += len(content)
            advance(len(content))
    return CutFile(path, tuple(pieces), whole.digest(), size, state)


def _pieces(path: Path, trust: TrustPolicy | None) -> Iterator[Piece]:
    """Pieces in file order, without gaps."""
    if is_archive(path):
        with open_archive(path, trust) as archive:
            yield from _archive_pieces(archive)
        return
    for number, segment in enumerate(plan_member(path, name="file").segments):
        label = segment.name or f"piece {number}"
        for count, (start, size) in enumerate(segment.chunks()):
            yield Piece(f"{label} {count}", start, size)


def _archive_pieces(archive: Archive) -> Iterator[Piece]:
    yield Piece("header", 0, HEADER_BYTES)
    for offset, entry in dictionary_places(archive.index):
        yield Piece(f"dictionary {entry.kind}", offset, entry.record_bytes)
    for member in archive.members:
        size = len(records.encode_member(member.role_number, member.name, member.bytes))
        yield Piece(f"member {member.name}", member.record_offset, size)
        for chunk in archive.chunks(member):
            yield Piece(f"{member.name} {chunk.number - member.first_chunk}", chunk.offset, chunk.record_bytes)
    footer = archive.footer
    yield Piece("index", footer.index_offset, footer.index_bytes)
    end = footer.index_offset + footer.index_bytes
    yield Piece("signatures and footer", end, footer.file_bytes - end)


def _bounded(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same, none longer than a patch's limit."""
    for piece in pieces:
        for number, start in enumerate(range(0, piece.bytes, MAX_PIECE_BYTES)):
            name = f"{piece.name}, part {number}" if number else piece.name
            yield Piece(name, piece.start + start, min(MAX_PIECE_BYTES, piece.bytes - start))
