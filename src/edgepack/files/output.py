"""Outputs: claimed before the work, written under another name, and renamed when they are whole and on disk.

A file under a final name is therefore always complete, and the one that the command reports. Ctrl-C, a kill, power loss
or a full disk leave at most hidden neighbours, which the next run removes. It knows nothing of contents.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, BinaryIO

from edgepack.errors import ResourceError, UsageError
from edgepack.files.names import hidden_path, is_temporary_of, lock_path, partial_path, temporary_path
from edgepack.files.opened import (
    buffered,
    create_new,
    is_at,
    open_lock,
    output_error,
    private_folder,
    raise_if_full,
    sync_folder,
    sync_tree,
    try_lock,
)
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_RETRY_SECONDS = 0.02
_TRIES = 100  # to get a lock file that is still in its place, or a temporary name of one's own
_MODE_BITS = 0o777
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


def inner_path(folder: Path, name: str) -> Path:
    """`folder / name`, with the folders between them made; a link among those is refused: it leads elsewhere.

    Args:
        folder: exists.
        name: relative, checked to have no `..` in it.

    Raises:
        UsageError: a folder on the way is a link or a file, or cannot be made.
    """
    path = folder / name
    for part in reversed(path.relative_to(folder).parents[:-1]):
        inner = folder / part
        try:
            inner.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"output '{path}': folder '{inner}' cannot be made: {error.strerror}") from None
        if inner.is_symlink():
            raise UsageError(f"output '{path}': expected a folder at '{inner}', got a link")
    return path


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


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """A hidden folder beside the claimed output `path`, empty at the beginning and gone at the end.

    What a killed run left in it is removed by the next one.

    Raises:
        UsageError, ResourceError: as `make_scratch`.
    """
    folder = hidden_path(path, "scratch")
    _remove_folder(folder)
    make_scratch(folder, path)
    try:
        yield folder
    finally:
        _remove_folder(folder)


@contextmanager
def folder_output(folder: Path, expected_bytes: int | None = None, *, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """A hidden folder that takes the name `folder` when the block ends without an error, and is gone otherwise.

    Args:
        folder: the final name: nothing may be there, or an empty folder.
        expected_bytes: to be compared with what is free.
        inputs: as for `check_output`.

    Raises:
        UsageError: something is there already, another run is making it, or the folder around it cannot be written to.
        ResourceError: the disk is too small or failed.
    """
    if folder.is_dir() and not folder.is_symlink():
        if any(folder.iterdir()):
            raise UsageError(f"output '{folder}': expected a folder that is empty or not there")
        folder.rmdir()
    with claimed_output(folder, expected_bytes, inputs=inputs), scratch_beside(folder) as scratch:
        yield scratch
        try:
            scratch.chmod(_folder_mode())
            sync_tree(scratch)
            if os.path.lexists(folder):
                raise UsageError(f"output '{folder}': another program made it meanwhile")
            scratch.rename(folder)
            sync_folder(folder.parent)
        except OSError as error:
            raise output_error(folder, error) from error


def _folder_mode() -> int:
    """What a new folder would have."""
    umask = os.umask(0)
    os.umask(umask)
    return _MODE_BITS & ~umask


def _remove_folder(folder: Path) -> None:
    """Remove a folder and all in it, as far as possible; links are not followed."""
    if not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)


def make_scratch(folder: Path, path: Path) -> None:
    """Make the hidden folder, or take ours from before, for what is made on the way to the output `path`.

    Raises:
        UsageError, ResourceError: it cannot be made, or belongs to somebody else.
    """
    try:
        private_folder(folder)
    except OSError as error:
        raise output_error(path, error) from error


def write_output(path: Path, content: bytes, *, inputs: Iterable[Path] = (), force: bool = False) -> None:
    """Claim `path` and write it in one go: reports, settings, keys. Raises as `claimed_output`."""
    with claimed_output(path, len(content), inputs=inputs, force=force), atomic_output(path) as stream:
        stream.write(content)
