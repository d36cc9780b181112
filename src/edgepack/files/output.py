"""Outputs: written under another name, and renamed when they are whole and on disk.

A file under a final name is therefore always complete, and the one that the command reports. Ctrl-C, a kill, power loss
or a full disk leave at most hidden neighbours, which the next run removes. It knows nothing of contents.
"""

from __future__ import annotations

import contextlib
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from edgepack.errors import ResourceError
from edgepack.files.claim import check_output, claimed_output
from edgepack.files.names import is_temporary_of, partial_path, temporary_path
from edgepack.files.opened import (
    buffered,
    create_new,
    is_at,
    output_error,
    raise_if_full,
    sync_folder,
    try_lock,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_TRIES = 100  # to get a temporary name of one's own
_MODE_BITS = 0o777


def remove_stale(path: Path) -> None:
    """Remove temporary files beside `path` of runs that were killed: those that nobody has locked."""
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        stale = [entry.name for entry in entries if is_temporary_of(path, entry.name) and not entry.is_symlink()]
        for name in stale:
            _remove_unlocked(path.with_name(name))


def _remove_unlocked(path: Path) -> None:
    with contextlib.suppress(OSError):
        if not stat.S_ISREG(path.lstat().st_mode):
            return
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            if try_lock(descriptor):
                path.unlink()
        finally:
            os.close(descriptor)


@contextmanager
def atomic_output(path: Path, expected_bytes: int | None = None, *, mode: int | None = None) -> Iterator[BinaryIO]:
    """Open a new file for writing; it appears as `path` only when the block ends without an error.

    An existing file is replaced at the end, not before, and its mode kept; a link is replaced, never what it leads to.
    Whether replacing is wanted, and that nobody else writes the same name, is `claimed_output`'s to say: alone this is
    for files of edgepack's own.

    Args:
        path: the final name.
        expected_bytes: checked against the free disk space before anything is written.
        mode: of the new file, less the umask; by default that of the file it replaces, else 0o666.

    Raises:
        UsageError: the folder is absent, or `path` is a folder.
        ResourceError: the disk is too small, became full or failed.
    """
    check_output(path, expected_bytes, force=True)
    remove_stale(path)
    temporary, descriptor = _new_temporary(path, 0o666 if mode is None else mode)
    raw, stream = buffered(descriptor, path)
    try:
        if mode is None:
            _keep_mode(path, descriptor)
        yield stream
        stream.flush()
        finish(descriptor, temporary, path)
        _remove_unlocked(partial_path(path))  # of a run that would have continued: there is nothing to continue
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise_if_full(path, error)
        raise
    finally:
        raw.close()  # without another try to write what could not be written


def finish(descriptor: int, written: Path, path: Path, then: str = "nothing was left behind") -> None:
    """Bring a file to disk and give it its final name; everything must have been written to `descriptor`.

    Raises:
        ResourceError: the disk failed, or another program took the file away.
    """
    try:
        os.fsync(descriptor)
        if not is_at(descriptor, written):
            raise ResourceError(f"output '{path}': another program replaced '{written.name}' while it was written")
        written.replace(path)
        sync_folder(path.parent)
        if not is_at(descriptor, path):
            raise ResourceError(f"output '{path}': another program replaced it at once")
    except OSError as error:
        raise output_error(path, error, then) from error


def _new_temporary(path: Path, mode: int) -> tuple[Path, int]:
    """A new name, and a locked descriptor of the empty file under it."""
    for _ in range(_TRIES):
        temporary = temporary_path(path)
        try:
            descriptor = create_new(temporary, mode)
        except FileExistsError:
            continue
        except OSError as error:
            raise output_error(path, error) from error
        if try_lock(descriptor) and is_at(descriptor, temporary):
            return temporary, descriptor
        os.close(descriptor)  # taken for a remnant between the two: it is gone
    raise ResourceError(f"output '{path}': no temporary name could be made beside it")


def _keep_mode(path: Path, descriptor: int) -> None:
    """Give the new file the permissions of the one that it replaces."""
    with contextlib.suppress(OSError, AttributeError):  # absent, or a disk or system without modes
        found = path.lstat()
        if stat.S_ISREG(found.st_mode):
            os.fchmod(descriptor, found.st_mode & _MODE_BITS)


def move_output(written: Path, path: Path) -> None:
    """Give a finished file, that is on disk, its final name in another folder of the same disk.

    Raises:
        UsageError, ResourceError: it cannot be renamed.
    """
    try:
        written.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise output_error(path, error) from error


def write_output(path: Path, content: bytes, *, inputs: Iterable[Path] = (), force: bool = False) -> None:
    """Claim `path` and write it in one go: reports, settings, keys. Raises as `claimed_output`."""
    with claimed_output(path, len(content), inputs=inputs, force=force), atomic_output(path) as stream:
        stream.write(content)
