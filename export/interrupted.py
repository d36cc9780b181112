"""What an interrupted export leaves behind so that it can go on: a partial file and a journal beside it.

The journal says how many tensors are on disk for certain, and of which plan over which source files. It
knows nothing of how tensors are made.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from edgepack.atomic_file import check_output, partial_path, sync_folder
from edgepack.errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from edgepack.export.plan import ExportPlan

# Bytes between two journal entries: each costs an fsync, which may take a second on a slow disk.
_STEP_BYTES = 256 << 20


def journal_path(path: Path) -> Path:
    """Where the journal of an export to `path` lies."""
    partial = partial_path(path)
    return partial.with_name(partial.name + ".json")


def plan_digest(plan: ExportPlan) -> str:
    """SHA-256 over all that decides the output's bytes: header, importance, encoders, and the state of the sources."""
    digest = hashlib.sha256(plan.layout.header)
    for tensor in plan.tensors:
        digest.update(tensor.quantizer.encode())
        if tensor.importance is not None:
            digest.update(tensor.importance.tobytes())
    for source in plan.sources:
        state = source.stat()
        digest.update(f"{source.name}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def noted(path: Path, digest: str) -> dict[str, Any] | None:
    """The last note on an interrupted export of the plan `digest` to `path`: tensors, bytes and whatever else."""
    try:
        entry = json.loads(journal_path(path).read_text(encoding="utf-8"))
        fits = entry["plan"] == digest and partial_path(path).stat().st_size >= int(entry["bytes"])
        return entry if fits and int(entry["tensors"]) >= 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def tensors_on_disk(path: Path, digest: str) -> int:
    """Tensors of the plan `digest` that an earlier run has left whole beside `path`; 0 when none."""
    entry = noted(path, digest)
    return 0 if entry is None else int(entry["tensors"])


@dataclass
class Journal:
    """Notes progress in the background: the file is synced first, then the note written.

    Attributes:
        path: the final name of the output.
        digest: of the plan.
        stream: the partial file.
    """

    path: Path
    digest: str
    stream: BinaryIO
    noted_bytes: int = 0
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _pending: Future[None] | None = None
    _delayed: str | None = None

    def note(self, tensors: int, length: int) -> None:
        """Say that `tensors` whole tensors end at `length` bytes; written down now and then."""
        if length - self.noted_bytes >= _STEP_BYTES and not (self._pending and not self._pending.done()):
            self.note_now(tensors, length, {})

    def note_now(self, tensors: int, length: int, more: Mapping[str, Any]) -> None:
        """As `note`, with more to remember, whatever the length; what an earlier note delays is written at the end."""
        self.noted_bytes = length
        text = json.dumps({"plan": self.digest, "tensors": tensors, "bytes": length, **more})
        if self._pending and not self._pending.done():
            self._delayed = text
            return
        self._delayed = None
        self.stream.flush()
        self._pending = self._pool.submit(self._write, text)

    def _write(self, text: str) -> None:
        os.fdatasync(self.stream.fileno())
        beside = journal_path(self.path).with_suffix(".new")
        beside.write_text(text, encoding="utf-8")
        beside.replace(journal_path(self.path))

    def close(self) -> None:
        """Wait for a note that is being written, and write the one that waited for it."""
        self._pool.shutdown(wait=True)
        if self._delayed is not None:
            self.stream.flush()
            self._write(self._delayed)


def remove_remains(path: Path) -> None:
    """Remove the partial file and the journal of an export to `path`."""
    partial_path(path).unlink(missing_ok=True)
    journal_path(path).unlink(missing_ok=True)


@contextmanager
def resumable_output(path: Path, digest: str, total_bytes: int, kept_bytes: int) -> Iterator[tuple[BinaryIO, Journal]]:
    """As `edgepack.atomic_file.atomic_output`, but what a kill or Ctrl-C interrupts can be resumed.

    Args:
        path: the final name.
        digest: of the plan.
        total_bytes: of the finished file.
        kept_bytes: of an earlier partial file that stay; 0 begins anew.

    Raises:
        UsageError: the folder is absent.
        ResourceError: the disk is too small or became full.
    """
    check_output(path, total_bytes - kept_bytes)
    partial = partial_path(path)
    if not kept_bytes:
        remove_remains(path)
    try:
        with partial.open("r+b" if kept_bytes else "w+b") as stream:
            stream.truncate(kept_bytes)
            stream.seek(kept_bytes)
            journal = Journal(path, digest, stream, noted_bytes=kept_bytes)
            try:
                yield stream, journal
            finally:
                journal.close()
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        journal_path(path).unlink(missing_ok=True)
        sync_folder(path.parent)
    except KeyboardInterrupt:
        if not journal_path(path).exists():
            remove_remains(path)
        raise
    except BaseException as error:
        remove_remains(path)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"output '{path}': the disk became full; nothing was left behind") from error
        raise
