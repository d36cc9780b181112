"""Where an archive's bytes are read from: a file, or anything else that gives a range of known length.

What the bytes mean is left to `archive`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from edgepack.errors import ArchiveError

if TYPE_CHECKING:
    from pathlib import Path


class ByteSource(Protocol):
    """Bytes that can be read at any offset, from several threads at once."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def read_at(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`.

        Raises:
            ArchiveError: they end before.
        """
        ...

    def close(self) -> None:
        """Free what it holds; nothing can be read afterwards."""
        ...


class FileSource:
    """A file, opened once: what is read later is the same file, whatever stands under its name by then.

    Args:
        path: of the file.
        descriptor: of the file, where it is open already; it stays the caller's.
    """

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        self._descriptor = _open_file(path) if descriptor is None else os.dup(descriptor)

    @property
    def size(self) -> int:
        """Length of the file now."""
        return os.fstat(self._descriptor).st_size

    def read_at(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`.

        Raises:
            ArchiveError: the file ends before.
        """
        block = os.pread(self._descriptor, size, offset)
        while len(block) < size:
            more = os.pread(self._descriptor, size - len(block), offset + len(block))
            if not more:
                raise ArchiveError(f"expected {size} bytes at {offset}, file ends after {len(block)}")
            block += more
        return block

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _open_file(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise ArchiveError(f"'{path}': cannot be read: {error.strerror}") from error
    if path.is_dir():
        os.close(descriptor)
        raise ArchiveError(f"'{path}': expected an archive, got a folder")
    return descriptor
