"""New arrays in files, written through memory maps, whose room on the disk is there before anything is written.

A memory map of a file with holes ends the process with SIGBUS where the disk has no room for one of them. Files that
are written in one go are `output`'s.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.files.opened import output_error

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import DTypeLike, NDArray

# What a system without such reservations says: there a full disk is noticed as late as before.
_CANNOT_RESERVE = (errno.EINVAL, errno.ENODEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


def new_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """A new `.npy` file of zeros as a memory map to write to; a file that is there is replaced.

    Raises:
        ResourceError: the disk has no room for all of it, or failed; no file is left.
        UsageError: it cannot be written there.
    """
    try:
        made: NDArray[Any] = np.lib.format.open_memmap(path, "w+", dtype, shape)
        _reserve(path)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise output_error(path, error) from error
    return made


def _reserve(path: Path) -> None:
    """Have the system set aside room for every byte of a file; raises OSError."""
    reserve = getattr(os, "posix_fallocate", None)
    if reserve is None:
        return
    descriptor = os.open(path, os.O_RDWR)
    try:
        reserve(descriptor, 0, os.fstat(descriptor).st_size)
    except OSError as error:
        if error.errno not in _CANNOT_RESERVE:
            raise
    finally:
        os.close(descriptor)
