"""A file that is written from its beginning, may be interrupted at any moment, and is continued by the next run.

What it keeps after an interruption is a `.NAME.partial`; whether those bytes are right is for the caller to check.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from edgepack.atomic_file import check_output, partial_path, sync_folder
from edgepack.errors import EdgepackError, NetworkError, ResourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def _lock(stream: BinaryIO, path: Path) -> None:
    if sys.platform == "win32":  # two runs at once are not kept apart there
        return
    import fcntl

    try:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UsageError(f"output '{path}': another run is writing it") from None


def _missing_bytes(path: Path, expected_bytes: int) -> int:
    """What the disk must still have room for."""
    partial = partial_path(path)
    return expected_bytes - min(expected_bytes, _taken_bytes(partial) if partial.exists() else 0)


def _taken_bytes(partial: Path) -> int:
    """Bytes of disk that a file takes: of one with holes, less than its length."""
    status = partial.stat()
    return min(status.st_size, getattr(status, "st_blocks", 1 << 60) * 512)


@contextmanager
def resumable_output(path: Path, expected_bytes: int) -> Iterator[BinaryIO]:
    """Open `path` for reading what an interrupted run left and for writing; positioned at the beginning.

    The file appears under its name only when the block ends without an error. After Ctrl-C, a kill or a full
    disk the partial file stays for the next run; after any error of edgepack's own it is removed.

    Raises:
        UsageError: the folder is absent, `path` is a folder, or another run writes it.
        ResourceError: the disk is too small or became full.
    """
    check_output(path, _missing_bytes(path, expected_bytes))
    partial = partial_path(path)
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(descriptor, "r+b") as stream:
        _lock(stream, path)
        try:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            partial.replace(path)
        except NetworkError:
            raise  # what came is right and is kept
        except EdgepackError:
            partial.unlink(missing_ok=True)
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceError(
                    f"output '{path}': the disk became full; free some space and run this again: it continues"
                ) from error
            raise
    sync_folder(path.parent)
