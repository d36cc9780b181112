"""Asks the system to begin bringing a growing file to the disk, so that less of it is waited for at the end.

Nothing depends on it: whether bytes are on the disk, and what went wrong, is left to `os.fsync`.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_PIECE_BYTES = 16 << 20
_WRITE = 2  # SYNC_FILE_RANGE_WRITE of Linux' fcntl.h: begin, do not wait; errors stay for fsync to tell


class EarlyWriteback:
    """Begins after every 16 MiB that were written; does nothing where the system is not Linux.

    Args:
        descriptor: of the file; it stays the caller's.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._waiting = descriptor, 0

    def wrote(self, count: int) -> None:
        """Take note of `count` more bytes, wherever they stand in the file."""
        self._waiting += count
        if self._waiting >= _PIECE_BYTES:
            self._waiting = 0
            _begin()(self._descriptor)


@cache
def _begin() -> Callable[[int], object]:
    """What begins writing all of a descriptor's file, as sync_file_range(2)."""
    if sys.platform != "linux":
        return lambda _descriptor: None
    import ctypes

    try:
        called = ctypes.CDLL(None).sync_file_range
    except AttributeError:  # a C library without it
        return lambda _descriptor: None
    called.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return lambda descriptor: called(descriptor, 0, 0, _WRITE)
