"""Inputs: opened only where they are plain files, read only as far as is bounded, and watched while they are read.

A FIFO would hang, a device never end, and a file may change below a long job. What the bytes mean is left to others.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from edgepack.errors import EdgepackError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MAX_SMALL_BYTES = 256 << 20
"""Of a file that is read whole: the largest vocabularies published take a tenth of it."""

MAX_DEPTH = 200
"""Of nested JSON: published files nest nine deep."""

_FLAGS = (
    os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_NOCTTY", 0)
)  # fmt: skip


def open_descriptor(path: Path, error: type[EdgepackError] = UsageError, label: str = "") -> int:
    """A descriptor for reading the plain file at `path`; arguments and errors are those of `open_source`."""
    try:
        descriptor = os.open(path, _FLAGS)
    except (OSError, ValueError) as problem:
        raise error(f"{label or path}: cannot be read: {getattr(problem, 'strerror', None) or problem}") from None
    if (kind := _kind(os.fstat(descriptor).st_mode)) is not None:
        os.close(descriptor)
        raise error(f"{label or path}: expected a file, got {kind}")
    return descriptor


def open_source(path: Path, error: type[EdgepackError] = UsageError, label: str = "") -> BinaryIO:
    """Open the plain file at `path` (or what a link there leads to) for reading.

    Args:
        path: of the file.
        error: what is raised.
        label: what the file is called in messages; by default its path.

    Raises:
        error: absent, unreadable, a folder, a FIFO, a socket or a device.
    """
    return os.fdopen(open_descriptor(path, error, label), "rb")


def _kind(mode: int) -> str | None:
    """What a file is that is no plain one."""
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a FIFO" if stat.S_ISFIFO(mode) else "a device or socket"


def read_small(
    path: Path, error: type[EdgepackError] = UsageError, most_bytes: int = MAX_SMALL_BYTES, label: str = ""
) -> bytes:
    """The whole content of a file of at most `most_bytes` bytes; raises `error` as `open_source`, and for more."""
    with open_source(path, error, label) as stream:
        size = os.fstat(stream.fileno()).st_size
        try:
            content = stream.read(most_bytes + 1) if size <= most_bytes else b""
        except OSError as problem:
            raise error(f"{label or path}: cannot be read: {problem.strerror}") from None
    if size > most_bytes or len(content) > most_bytes:
        raise error(f"{label or path}: expected at most {most_bytes} bytes, got {max(size, len(content))}")
    return content


def parse_json(raw: bytes | str, where: object, error: type[EdgepackError] = UsageError) -> Any:
    """What JSON says; nested at most `MAX_DEPTH` deep.

    Args:
        raw: UTF-8 (or UTF-16, UTF-32) bytes, or text.
        where: named in the error.
        error: what is raised.

    Raises:
        error: not JSON, or nested too deeply.
    """
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as problem:
        told = "nested too deeply" if isinstance(problem, RecursionError) else problem
        raise error(f"{where}: expected JSON: {told}") from None
    if not _is_shallow(value):
        raise error(f"{where}: expected JSON nested at most {MAX_DEPTH} deep")
    return value


def parse_object(raw: bytes | str, where: object, error: type[EdgepackError] = UsageError) -> dict[str, Any]:
    """The object that JSON says; arguments as of `parse_json`, which raises too.

    Raises:
        error: it is JSON, but no object.
    """
    return as_object(parse_json(raw, where, error), where, error)


def as_object(value: Any, where: object, error: type[EdgepackError] = UsageError) -> dict[str, Any]:
    """What JSON said, where that is an object; raises `error` where it is not."""
    if not isinstance(value, dict):
        raise error(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _is_shallow(value: Any) -> bool:
    """Whether lists and objects are nested at most `MAX_DEPTH` deep; without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for each in level
            if isinstance(each, (list, dict))
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, (list, dict))
        ]
        if not level:
            return True
    return False


@dataclass(frozen=True)
class FileState:
    """What tells whether a file is still the one that was looked at.

    Attributes:
        device: number of the disk.
        inode: number of the file on it; another one lies there after a rename.
        bytes: length.
        mtime_ns: when it was last written.
        ctime_ns: when anything of it last changed, which nobody can set back; a new link or mode changes it too, so
            that it does not count as a difference.
    """

    device: int
    inode: int
    bytes: int
    mtime_ns: int
    ctime_ns: int = field(default=0, compare=False)

    @classmethod
    def of(cls, file: Path | int) -> FileState:
        """The state of the file at a path, or of an open descriptor; raises OSError."""
        status = os.stat(file)  # noqa: PTH116  descriptors too
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def check_unchanged(path: Path, before: FileState, error: type[EdgepackError] = UsageError) -> None:
    """Raise `error` where the file at `path` is not what it was when it was opened."""
    try:
        now = FileState.of(path)
    except OSError as problem:
        raise error(f"{path}: it went away while it was read: {problem.strerror}") from None
    if now != before:
        raise error(f"{path}: it changed while it was read: {_difference(before, now)}")


def _difference(before: FileState, now: FileState) -> str:
    if (before.device, before.inode) != (now.device, now.inode):
        return "another file lies there now"
    if before.bytes != now.bytes:
        return f"it had {before.bytes} bytes and has {now.bytes}"
    return "it was written to"


@dataclass(frozen=True)
class WatchedFiles:
    """Files that a long job reads, as they were when it began; iterating gives their paths.

    Attributes:
        states: of each file.
    """

    states: tuple[tuple[Path, FileState], ...] = ()

    @classmethod
    def of(cls, paths: Iterable[Path]) -> WatchedFiles:
        """The files as they are now; raises OSError."""
        return cls(tuple((path, FileState.of(path)) for path in paths))

    def __iter__(self) -> Iterator[Path]:
        return (path for path, _state in self.states)

    def __add__(self, other: WatchedFiles) -> WatchedFiles:
        return WatchedFiles(self.states + other.states)

    def identity(self) -> bytes:
        """Names, lengths and times: what an interrupted job compares before it goes on."""
        told = (f"{path.name}\0{state.bytes}\0{state.mtime_ns}\0" for path, state in self.states)
        return "".join(told).encode("utf-8", "surrogateescape")

    def check(self, error: type[EdgepackError]) -> None:
        """Raise `error` where a file is not what it was."""
        for path, state in self.states:
            check_unchanged(path, state, error)
