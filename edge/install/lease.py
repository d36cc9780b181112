"""Says that an installed file is in use, so that pruning leaves it alone: a lock that any number of users share.

Keeping two installations apart is `lock`'s.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from edgepack.files.opened import is_at, open_lock

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self


class Lease:
    """A share in the lock of a file; given back by `close`, or when it is not referred to any more.

    Args:
        descriptor: of the lock file, locked; -1 where a system has no such locks.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def shared(cls, path: Path) -> Self:
        """Take a share in the lock file at `path`, made where it is absent; raises OSError."""
        if sys.platform == "win32":
            return cls(-1)
        import fcntl

        while True:
            descriptor = open_lock(path)
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # who holds it alone removes it, and that takes no time
            if is_at(descriptor, path):
                return cls(descriptor)
            os.close(descriptor)

    @classmethod
    def alone(cls, path: Path) -> Self | None:
        """Take the whole lock; None where anybody has a share in it. Raises OSError."""
        if sys.platform == "win32":
            return cls(-1)
        import fcntl

        descriptor = open_lock(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return cls(descriptor)

    def close(self) -> None:
        """Give it back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()
