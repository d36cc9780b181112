"""Writes a file beside its final name and renames it when it is whole and on disk.

It knows nothing of contents. A file under the final name is therefore always complete: after Ctrl-C,
kill, power loss or a full disk there is at most a `.NAME.partial` beside it, which the next run overwrites.
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from edgepack.errors import ResourceError, UsageError
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def partial_path(path: Path) -> Path:
    """Where `path` is written until it is whole: a hidden neighbour, so on the same file system."""
    return path.with_name(f".{path.name}.partial")


def check_output(path: Path, expected_bytes: int | None = None) -> None:
    """Check before long work that `path` can be written and that the disk has room for it.

    Raises:
        UsageError: the folder is absent, or `path` is a folder.
        ResourceError: fewer than `expected_bytes` are free.
    """
    if not path.parent.is_dir():
        raise UsageError(f"output '{path}': folder '{path.parent}' does not exist")
    if path.is_dir():
        raise UsageError(f"output '{path}': expected a file name, got a folder")
    if expected_bytes is not None:
        free = shutil.disk_usage(path.parent).free
        if free < expected_bytes:
            raise ResourceError(
                f"output '{path}': needs {format_size(expected_bytes)}, disk has {format_size(free)} free"
            )


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_output(path: Path, expected_bytes: int | None = None) -> Iterator[BinaryIO]:
    """Open `path` for writing; it appears under its name only when the block ends without an error.

    Args:
        path: the final name; an existing file is replaced at the end, not before.
        expected_bytes: checked against the free disk space before anything is written.

    Raises:
        UsageError: the folder is absent, or `path` is a folder.
        ResourceError: the disk is too small or became full.
    """
    check_output(path, expected_bytes)
    partial = partial_path(path)
    try:
        with partial.open("w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"output '{path}': the disk became full; nothing was left behind") from error
        raise
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
