"""What an interrupted export leaves behind so that it can go on: a partial file and a journal beside it.

The journal says how many tensors are on disk for certain, of which plan over which source files, and the digest of
each: what differs from its digest is made anew. It knows nothing of how tensors are made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from edgepack.errors import EdgepackError
from edgepack.files.names import partial_path
from edgepack.files.output import atomic_output, remove_stale
from edgepack.files.resumable import is_worth_keeping, resumable_output

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from edgepack.export.plan import ExportPlan

# Bytes between two journal entries: each costs an fsync, which may take a second on a slow disk.
_STEP_BYTES = 256 << 20
_MAX_JOURNAL_BYTES = 64 << 20
_READ_BYTES = 8 << 20
_CONTINUES = "free some space and run this again; with --resume it goes on where it can"


def journal_path(path: Path) -> Path:
    """Where the journal of an export to `path` lies."""
    partial = partial_path(path)
    return partial.with_name(f"{partial.name}.json")


def plan_digest(plan: ExportPlan) -> str:
    """SHA-256 over all that decides the output's bytes: header, importance, encoders, and the state of the sources."""
    digest = hashlib.sha256(plan.layout.header)
    for tensor in plan.tensors:
        digest.update(tensor.quantizer.encode())
        if tensor.importance is not None:
            digest.update(tensor.importance.tobytes())
    digest.update(plan.sources.identity())
    return digest.hexdigest()


@dataclass(frozen=True)
class Note:
    """What a journal says of an interrupted export.

    Attributes:
        ends: where each finished tensor ends in the partial file, in bytes.
        digests: SHA-256 of each of these pieces, hexadecimal.
        more: whatever else the maker wanted to remember.
    """

    ends: tuple[int, ...]
    digests: tuple[str, ...]
    more: Mapping[str, Any]

    @property
    def tensors(self) -> int:
        """How many are finished."""
        return len(self.ends)

    @property
    def bytes(self) -> int:
        """Where the last of them ends."""
        return self.ends[-1] if self.ends else 0


def noted(path: Path, digest: str, start: int = 0) -> Note | None:
    """The last note on an interrupted export of the plan `digest` to `path`, as far as the partial file agrees.

    Every finished tensor is read and held against its digest; from the first that differs on, all counts as undone.
    `start` is where the first piece begins, as for `journaled_output`.
    """
    try:
        entry = json.loads(_read_small(journal_path(path)))
        ends, digests, more = entry["ends"], entry["digests"], entry["more"]
        if entry["plan"] != digest or len(ends) != len(digests) or not isinstance(more, dict):
            return None
        ends = [int(end) for end in ends]
        with partial_path(path).open("rb") as stream:
            good = _agreeing(stream, start, ends, digests)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return Note(tuple(ends[:good]), tuple(digests[:good]), more) if good else None


def _read_small(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_MAX_JOURNAL_BYTES)


def _agreeing(stream: BinaryIO, start: int, ends: Sequence[int], digests: Sequence[object]) -> int:
    """How many pieces from `start` on have the digests that were noted."""
    stream.seek(start)
    for number, (end, expected) in enumerate(zip(ends, digests, strict=True)):
        if end < start or _digest_to(stream, end - start) != expected:
            return number
        start = end
    return len(ends)


def _digest_to(stream: BinaryIO, count: int) -> str | None:
    """SHA-256 of the next `count` bytes; None where the file ends before."""
    digest = hashlib.sha256()
    while count:
        block = stream.read(min(count, _READ_BYTES))
        if not block:
            return None
        digest.update(block)
        count -= len(block)
    return digest.hexdigest()


@dataclass
class Journal:
    """Notes progress in the background: the file is synced first, digests taken of what it holds, the note written.

    Attributes:
        path: the final name of the output.
        digest: of the plan.
        stream: the partial file.
        start: where the first tensor's piece begins.
        ends: where each finished tensor ends.
        digests: of the finished tensors that are noted; behind `ends` until the next note.
    """

    path: Path
    digest: str
    stream: BinaryIO
    start: int = 0
    ends: list[int] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    _noted_bytes: int = 0
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _pending: Future[None] | None = None
    _delayed: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self._noted_bytes = self.ends[-1] if self.ends else self.start

    def note(self, tensors: int, length: int) -> None:
        """Say that `tensors` whole tensors end at `length` bytes; written down now and then.

        Raises:
            OSError, EdgepackError: what went wrong with an earlier note: the disk is not to be trusted.
        """
        self._add(tensors, length)
        if length - self._noted_bytes >= _STEP_BYTES and self._is_free():
            self._submit({})

    def note_now(self, tensors: int, length: int, more: Mapping[str, Any]) -> None:
        """As `note`, with more to remember, whatever the length; what an earlier note delays is written at the end."""
        self._add(tensors, length)
        if self._is_free():
            self._submit(more)
        else:
            self._delayed = more

    def _add(self, tensors: int, length: int) -> None:
        self.ends += [length] * (tensors - len(self.ends))

    def _is_free(self) -> bool:
        """Whether no note is being written; raises what the last one raised."""
        if self._pending is None:
            return True
        if not self._pending.done():
            return False
        self._pending.result()
        return True

    def _submit(self, more: Mapping[str, Any]) -> None:
        self._delayed = None
        self._noted_bytes = self.ends[-1] if self.ends else self.start
        self.stream.flush()
        self._pending = self._pool.submit(self._write, tuple(self.ends), more)

    def _write(self, ends: tuple[int, ...], more: Mapping[str, Any]) -> None:
        """Sync the file, take the digests of what is new in it as it lies there, write the note."""
        os.fdatasync(self.stream.fileno())
        known = len(self.digests)
        begin = ends[known - 1] if known else self.start
        with partial_path(self.path).open("rb") as written:
            written.seek(begin)
            for end in ends[known:]:
                self.digests.append(_digest_to(written, end - begin) or "")
                begin = end
        entry = {"plan": self.digest, "ends": ends, "digests": self.digests, "more": more}
        with atomic_output(journal_path(self.path)) as stream:
            stream.write(json.dumps(entry).encode())

    def close(self) -> None:
        """Wait for a note that is being written, and write the one that waited for it; raises as `note`."""
        self._pool.shutdown(wait=True)
        self._is_free()
        if self._delayed is not None:
            self.stream.flush()
            self._write(tuple(self.ends), self._delayed)


def remove_remains(path: Path) -> None:
    """Remove the partial file and the journal of an export to `path`."""
    for remnant in (partial_path(path), journal_path(path)):
        with contextlib.suppress(OSError):
            remnant.unlink()
    remove_stale(journal_path(path))


@contextmanager
def journaled_output(
    path: Path, digest: str, total_bytes: int, kept: Note | None = None, start: int = 0
) -> Iterator[tuple[BinaryIO, Journal]]:
    """As `edgepack.files.output.atomic_output`, but what a kill, Ctrl-C or a full disk interrupts can be resumed.

    Args:
        path: the final name.
        digest: of the plan.
        total_bytes: of the finished file.
        kept: what of an earlier partial file stays; None begins anew.
        start: where the first tensor's piece begins: 0 where the header is written first, else behind its place.

    Raises:
        UsageError: the folder is absent, or another run writes the file.
        ResourceError: the disk is too small or became full.
    """
    if kept is None:
        remove_remains(path)
    found = (list(kept.ends), list(kept.digests)) if kept else ([], [])
    try:
        with resumable_output(path, total_bytes, lambda error: _keeps(path, error), _CONTINUES) as stream:
            stream.truncate(kept.bytes if kept else 0)
            stream.seek(kept.bytes if kept else 0)
            journal = Journal(path, digest, stream, start, *found)
            with _closing(journal):
                yield stream, journal
    finally:
        if not partial_path(path).exists():
            remove_remains(path)


def _keeps(path: Path, error: BaseException) -> bool:
    """Whether a partial file is worth keeping: only with its journal."""
    return is_worth_keeping(error) and journal_path(path).exists()


@contextmanager
def _closing(journal: Journal) -> Iterator[None]:
    """Close a journal; what goes wrong with it must not hide what went wrong before."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(EdgepackError, OSError):
            journal.close()
        raise
    journal.close()
