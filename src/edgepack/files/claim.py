"""Outputs before the work: whether a name can be written, no input is overwritten, and nobody else makes it meanwhile.

How a file gets its bytes and its name is `output`'s.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING

from edgepack.errors import ResourceError, UsageError
from edgepack.files.names import lock_path
from edgepack.files.opened import (
    is_at,
    open_lock,
    output_error,
    try_lock,
)
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_RETRY_SECONDS = 0.02
_MOST_INPUT_FILES = 10_000  # of a folder, compared with an output that exists


def check_output(
    path: Path, expected_bytes: int | None = None, *, inputs: Iterable[Path] = (), force: bool = False
) -> None:
    """Check before long work that `path` can be written and that the disk has room for it.

    Args:
        path: the final name.
        expected_bytes: to be compared with what is free.
        inputs: files and folders that the command reads: none of their files may be the output, by whatever name.
        force: whether an existing file may be replaced.

    Raises:
        UsageError: the folder is absent or cannot be written to, `path` is a folder, a device, an input, or is there
            already.
        ResourceError: fewer than `expected_bytes` are free.
    """
    _check_place(path)
    _check_existing(path, inputs, force)
    if expected_bytes is not None:
        free = shutil.disk_usage(path.parent).free
        if free < expected_bytes:
            raise ResourceError(
                f"output '{path}': needs {format_size(expected_bytes)}, disk has {format_size(free)} free"
            )


def _check_place(path: Path) -> None:
    try:
        if not path.name or path.is_dir():
            raise UsageError(f"output '{path}': expected a file name, got a folder")
        if not path.parent.is_dir():
            raise UsageError(f"output '{path}': folder '{path.parent}' does not exist")
        if hasattr(os, "pathconf") and len(os.fsencode(path.name)) > os.pathconf(path.parent, "PC_NAME_MAX"):
            raise UsageError(f"output '{path}': the name is too long for its folder")
    except (OSError, ValueError) as error:
        raise UsageError(f"output '{path}': {getattr(error, 'strerror', None) or error}") from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"output '{path}': folder '{path.parent}' cannot be written to")


def _check_existing(path: Path, inputs: Iterable[Path], force: bool) -> None:
    """What lies at `path` is a file that may go, or nothing."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    with contextlib.suppress(FileNotFoundError):  # a link that leads nowhere
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f"output '{path}': expected a file, got a device, FIFO or socket")
        if (same := next((each for each in inputs if _holds(each, found)), None)) is not None:
            raise UsageError(f"output '{path}': it is the input '{same}': expected another name")
    if not force:
        raise UsageError(f"output '{path}': is there already: name the output with -o, or replace it with --force")


def _holds(place: Path, found: os.stat_result) -> bool:
    """Whether an input is that file, or a folder that holds it (two floors down at most)."""
    files = chain(place.glob("*"), place.glob("*/*")) if place.is_dir() else iter((place,))
    for file in islice(files, _MOST_INPUT_FILES):
        with contextlib.suppress(OSError):
            if os.path.samestat(file.stat(), found):
                return True
    return False


@contextmanager
def claimed_output(
    path: Path,
    expected_bytes: int | None = None,
    *,
    inputs: Iterable[Path] = (),
    force: bool = False,
    wait_seconds: float = 0,
) -> Iterator[None]:
    """Keep `path` for the command that makes it while the block runs: what every command that writes begins with.

    The lock is a hidden file beside the output, gone at the end. While it is held, a second command that wants the
    same name is refused, or waits.

    Args:
        path: the final name.
        expected_bytes: to be compared with what is free.
        inputs: what the command reads: none of it may be the output.
        force: whether an existing file may be replaced.
        wait_seconds: for another command to finish, before it is refused.

    Raises:
        UsageError: another run is writing it, or as `check_output`.
        ResourceError: as `check_output`.
    """
    _check_place(path)
    lock, descriptor = lock_path(path), _claim(path, wait_seconds)
    try:
        check_output(path, expected_bytes, inputs=inputs, force=force)
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps a file that is open
            lock.unlink()  # while it is held: who opened it before finds that it has no name any more
        os.close(descriptor)


def _claim(path: Path, wait_seconds: float) -> int:
    """A descriptor of the lock file, locked and still in its place."""
    lock, end = lock_path(path), time.monotonic() + wait_seconds
    while True:
        try:
            descriptor = open_lock(lock)
        except OSError as error:
            raise output_error(path, error) from error
        if try_lock(descriptor):
            if is_at(descriptor, lock):
                return descriptor
            os.close(descriptor)  # its holder has finished and removed it
            continue
        os.close(descriptor)
        if time.monotonic() >= end:
            raise UsageError(f"output '{path}': another run is writing it")
        time.sleep(_RETRY_SECONDS)
