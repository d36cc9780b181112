"""Writes an archive in one pass: header, dictionaries, chunks as they are compressed, index, footer.

The stream is only written to, never sought, so it may be a pipe. How bytes look is left to `format`.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from edgepack.errors import UsageError
from edgepack.file_digest import file_sha256
from edgepack.files.output import atomic_output
from edgepack.files.source import FileState, check_unchanged, open_source
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.ordered_threads import ordered_map
from edgepack.packaging import format as archive_format
from edgepack.packaging import records
from edgepack.packaging.archive import open_archive
from edgepack.packaging.coding import chunks
from edgepack.packaging.coding.dictionaries import Dictionary, encoder_dictionaries, train_dictionaries
from edgepack.packaging.coding.streams import DEFAULT_LEVEL, StreamEncoder
from edgepack.packaging.delta.base import BaseArchive
from edgepack.packaging.index import table as index
from edgepack.packaging.index.merkle import merkle_root
from edgepack.packaging.segments import MemberPlan, Segment, plan_member
from edgepack.packaging.trust.releases import checked_release
from edgepack.progress import Progress, silent
from edgepack.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edgepack.packaging.coding.chunks import EncodedChunk
    from edgepack.packaging.trust.policy import TrustPolicy

STANDARD_STREAM = Path("-")


@dataclass(frozen=True)
class PackResult:
    """What packing gave.

    Attributes:
        output: the archive; `-` for standard output.
        bytes: length of the archive.
        original_bytes: of all members.
        sha256: of the first member, the GGUF, in hexadecimal.
        seconds: wall time.
    """

    output: Path
    bytes: int
    original_bytes: int
    sha256: str
    seconds: float


def pack_archive(
    gguf: Path,
    out: Path,
    *,
    level: int = DEFAULT_LEVEL,
    dictionary: bool = True,
    include: Sequence[Path] = (),
    base: Path | None = None,
    trust: TrustPolicy | None = None,
    grids: bool = False,
    release: str | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> PackResult:
    """Pack a GGUF, and other files beside it, into one archive.

    Args:
        gguf: the model.
        out: the archive; `-` writes to standard output.
        level: zstd level of what is searched for repeats.
        dictionary: whether to train dictionaries for the stream kinds that gain from one.
        include: further members, stored under their own names.
        base: an older archive; its dictionaries are used and chunks of the same content taken over.
        trust: whose archives are taken as a base; the user's trust store by default.
        grids: code the integers of Q4_K, Q5_K, Q6_K and Q8_0 by scale class even in a GGUF that is not of the wire.
        release: the model's version, noted under its name, so that devices tell an older one; None notes nothing.
        threads: workers; None for one a core.
        progress: told of bytes read.

    Raises:
        GGUFError: `gguf` is not a whole GGUF.
        ArchiveError: it compresses more than 256-fold: readers would take the archive for a bomb.
        UsageError: a file is not there, a name occurs twice, there are two projectors, the output folder is absent.
        ResourceError: the disk is full.
    """
    started = time.perf_counter()
    members = [plan_member(gguf, main=True, grids=grids), *(plan_member(path) for path in include)]
    names = [member.name for member in members]
    if len(set(names)) != len(names):
        raise UsageError(f"members need names of their own, got {', '.join(names)}")
    if (eyes := [member.name for member in members if member.role is archive_format.Role.PROJECTOR])[1:]:
        raise UsageError(f"a model has one projector, got {', '.join(eyes)}")
    original_bytes = sum(member.bytes for member in members)
    with ExitStack() as stack:
        reused = None if base is None else BaseArchive(stack.enter_context(open_archive(base, trust)))
        stream = stack.enter_context(_open_output(out))
        dictionaries = _dictionaries(members, level, dictionary, reused)
        writer = ArchiveWriter(stream, original_bytes, level, dictionaries, threads, reused)
        with progress("packing", original_bytes) as advance:
            for member in members:
                writer.add_member(member, advance)
        for member, entry in zip(members, writer.members, strict=True):
            _check_source(member, entry.sha256)
        noted = {} if release is None else checked_release(_model_name(gguf), release).attributes
        writer.finish({"level": level, "producer": f"edgepack {__version__}", **noted})
        archive_format.check_expansion(original_bytes, writer.written)  # no reader would take it
    sha256 = writer.members[0].sha256.hex()
    return PackResult(out, writer.written, original_bytes, sha256, time.perf_counter() - started)


def _check_source(member: MemberPlan, digest: bytes) -> None:
    """The file is still the one that was packed; read again only where it was touched and its time set back."""
    check_unchanged(member.path, member.state)
    touched = FileState.of(member.path).ctime_ns != member.state.ctime_ns
    if touched and file_sha256(member.path) != digest.hex():
        raise UsageError(f"{member.path}: it changed while it was read, and its time was set back")


def _model_name(gguf: Path) -> str:
    """What the model calls itself, or its file."""
    named = read_header(gguf).get(keys.NAME)
    return named if isinstance(named, str) and named else gguf.stem


def _dictionaries(
    members: Sequence[MemberPlan], level: int, wanted: bool, base: BaseArchive | None
) -> tuple[Dictionary, ...]:
    if base is not None:
        return base.dictionaries()
    return train_dictionaries(members, level) if wanted else ()


def _open_output(out: Path) -> AbstractContextManager[BinaryIO]:
    return nullcontext(sys.stdout.buffer) if out == STANDARD_STREAM else atomic_output(out)


@dataclass
class _Tally:
    streams: int = 0
    plain: int = 0
    stored: int = 0
    without: int = 0


@dataclass
class ArchiveWriter:
    """A state machine: members one after the other with `add_member`, then `finish`.

    Attributes:
        stream: where bytes go; only written to.
        content_bytes: of all members that will be added.
        level: zstd level.
        dictionaries: written first, used by their stream kinds.
        threads: workers; None for one a core.
        base: chunks of the same content are taken from it.
        written: bytes so far.
        members: entries of what was added.
    """

    stream: BinaryIO
    content_bytes: int
    level: int = DEFAULT_LEVEL
    dictionaries: tuple[Dictionary, ...] = ()
    threads: int | None = None
    base: BaseArchive | None = None
    written: int = 0
    members: list[index.MemberEntry] = field(default_factory=list)
    _segments: list[index.SegmentEntry] = field(default_factory=list)
    _chunks: list[tuple[int, int, bytes, bytes]] = field(default_factory=list)
    _tallies: dict[tuple[int, int], _Tally] = field(default_factory=dict)
    _header_digest: bytes = b""

    def __post_init__(self) -> None:
        header = archive_format.encode_header(self.content_bytes)
        self._header_digest = header[-archive_format.DIGEST_BYTES :]
        self._write(header)
        self._encoder = StreamEncoder(self.level, encoder_dictionaries(self.dictionaries))
        self._dictionary_entries = tuple(map(self._write_dictionary, self.dictionaries))

    def _write_dictionary(self, dictionary: Dictionary) -> index.DictionaryEntry:
        record = records.encode_dictionary(dictionary.id, dictionary.kind, dictionary.content)
        self._write(record)
        digest = record[-archive_format.DIGEST_BYTES :]
        return index.DictionaryEntry(dictionary.id, dictionary.kind, len(record), digest)

    def _write(self, block: bytes) -> None:
        self.stream.write(block)
        self.written += len(block)

    def add_member(self, member: MemberPlan, advance: Callable[[int], object]) -> None:
        """Read, compress and write a file.

        Raises:
            UsageError: the file became shorter while it was read.
        """
        self._write(records.encode_member(member.role, member.name, member.bytes))
        whole = hashlib.sha256()
        with open_source(member.path) as source:
            pieces = ((segment, start, size) for segment in member.segments for start, size in segment.chunks())
            encoded = ordered_map(partial(self._encode_piece, source.fileno(), member.path), pieces, self.threads)
            for segment in member.segments:
                self._add_segment(segment, encoded, whole, advance)
        digest = whole.digest()
        self.members.append(index.MemberEntry(member.role, member.name, len(member.segments), member.bytes, digest))

    def _encode_piece(self, descriptor: int, path: Path, piece: tuple[Segment, int, int]) -> EncodedChunk:
        segment, start, size = piece
        raw = os.pread(descriptor, size, start)
        if len(raw) != size:
            raise UsageError(f"'{path}': expected {size} bytes at {start}, got {len(raw)}: it changed while being read")
        known = None if self.base is None else self.base.encoded(raw, archive_format.sha256(raw), segment.layout)
        return chunks.encode(raw, segment, self._encoder) if known is None else known

    def _add_segment(
        self, segment: Segment, encoded: Iterator[EncodedChunk], whole: Any, advance: Callable[[int], object]
    ) -> None:
        tensor, left, count = hashlib.sha256(), segment.tensor_bytes, 0
        for _ in segment.chunks():
            chunk = next(encoded)
            whole.update(chunk.raw)
            tensor.update(memoryview(chunk.raw)[:left])
            left -= min(left, len(chunk.raw))
            count += 1
            self._add_chunk(chunk)
            advance(len(chunk.raw))
        entry = index.SegmentEntry(
            segment.layout.id, segment.name, count, segment.bytes, segment.tensor_bytes, tensor.digest()
        )
        self._segments.append(entry)

    def _add_chunk(self, chunk: EncodedChunk) -> None:
        self._write(chunk.record)
        self._chunks.append((len(chunk.record), len(chunk.raw), chunk.stored, chunk.plain))
        for entry, without in chunk.streams:
            tally = self._tallies.setdefault((entry.kind, entry.dictionary), _Tally())
            tally.streams += 1
            tally.plain += entry.plain_bytes
            tally.stored += entry.stored_bytes
            tally.without += without

    def finish(self, attributes: dict[str, Any]) -> None:
        """Write index and footer; the stream stays open."""
        table = np.array(self._chunks, dtype=index.CHUNK_DTYPE)
        totals = tuple(
            index.StreamTotal(kind, dictionary, t.streams, t.plain, t.stored, t.without)
            for (kind, dictionary), t in sorted(self._tallies.items())
        )
        root = merkle_root(index.merkle_leaves(self._segments, table))
        record = index.Index(
            self._header_digest,
            root,
            self._dictionary_entries,
            tuple(self.members),
            tuple(self._segments),
            table,
            totals,
            attributes,
        ).encode()
        footer = archive_format.Footer(self.written, len(record), 0)
        self._write(record)
        self._write(footer.encode())
        self.stream.flush()
