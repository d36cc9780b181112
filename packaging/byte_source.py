"""Where an archive's bytes are read from: a file, or anything else that gives a range of known length.

What the bytes mean is left to `archive`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from edgepack.errors import ArchiveError
from edgepack.files.source import open_descriptor

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
        self._descriptor = open_descriptor(path, ArchiveError) if descriptor is None else os.dup(descriptor)

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
