"""Keeps two processes from doing the same thing in one folder: a lock file that the system frees on exit."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

_RETRY_SECONDS = 0.1


@contextmanager
def locked(path: Path, on_wait: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold the lock file at `path` while the block runs.

    The file stays (removing it would let two processes lock two files of one name); a lock whose holder was killed
    is free again at once.

    Args:
        path: the lock file; made where it is absent.
        on_wait: called once when another process holds the lock.
    """
    with path.open("ab") as stream:
        waited = False
        while not _try_lock(stream):
            if not waited:
                on_wait()
                waited = True
            time.sleep(_RETRY_SECONDS)
        yield  # closing the stream frees the lock


def _try_lock(stream: BinaryIO) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
