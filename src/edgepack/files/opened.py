"""Opens a hidden file beside an output without being led elsewhere, locks it, and says what went wrong in one line.

A folder may be prepared by others: links, FIFOs and devices under the names that edgepack uses are never followed or
written to. When files are made and what becomes of them is left to `output` and `resumable`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from edgepack.errors import EdgepackError, ResourceError, UsageError
from edgepack.files.writeback import EarlyWriteback

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# O_NOFOLLOW: not through a link; O_NONBLOCK: a FIFO does not wait for its other end.
_SAFELY = (
    getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0)
)  # fmt: skip
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What the user's choice of a name or folder explains; the rest is the disk's.
_CHOICE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.ENOENT,
    errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.ENXIO,
)  # fmt: skip
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


def output_error(path: Path, error: OSError, then: str = "nothing was left behind") -> EdgepackError:
    """An operating system's error about an output, as one line.

    Args:
        path: the final name.
        error: what the system said.
        then: what a full disk means for the user.
    """
    if error.errno in _FULL:
        return ResourceError(f"output '{path}': the disk became full; {then}")
    kind = UsageError if error.errno in _CHOICE else ResourceError
    return kind(f"output '{path}': cannot be written: {error.strerror or error}")


def system_error(error: OSError) -> EdgepackError:
    """An operating system's error about any file, as one line."""
    where = f"'{os.fsdecode(error.filename)}': " if isinstance(error.filename, (str, bytes)) else ""
    kind = UsageError if error.errno in _CHOICE else ResourceError
    return kind(f"{where}{error.strerror or error}")


def raise_if_full(path: Path, error: BaseException, then: str = "nothing was left behind") -> None:
    """Raise ResourceError where `error` says that a disk is full, whoever noticed it."""
    if isinstance(error, OSError) and error.errno in _FULL:
        raise output_error(path, error, then) from error


class OutputStream(io.FileIO):
    """A descriptor to write to, whose errors are those of the output, so that they are not taken for a source's.

    Args:
        descriptor: open for reading and writing; owned from now on.
        target: the final name, for messages.
        then: what a full disk means for the user.
    """

    def __init__(self, descriptor: int, target: Path, then: str) -> None:
        super().__init__(descriptor, "r+b")
        self._target, self._then = target, then
        self._writeback = EarlyWriteback(descriptor)

    def write(self, block: ReadableBuffer, /) -> int:
        """As `io.FileIO.write`; raises ResourceError or UsageError."""
        try:
            count = super().write(block)
        except OSError as error:
            raise output_error(self._target, error, self._then) from error
        self._writeback.wrote(count)
        return count

    def truncate(self, size: int | None = None, /) -> int:
        """As `io.FileIO.truncate`; raises ResourceError or UsageError."""
        try:
            return super().truncate(size)
        except OSError as error:
            raise output_error(self._target, error, self._then) from error


def buffered(descriptor: int, target: Path, then: str = "nothing was left behind") -> tuple[OutputStream, BinaryIO]:
    """The raw stream, to be closed at the end whatever happened, and the buffered one that is written to."""
    raw = OutputStream(descriptor, target, then)
    return raw, io.BufferedRandom(raw)


def create_new(path: Path, mode: int = 0o666) -> int:
    """A descriptor of a file that was not there before; `mode` less the umask. Raises OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFELY, mode)


def open_own(path: Path) -> int:
    """A descriptor, for reading and writing, of the plain file of ours at `path`, made where it is absent.

    What else may lie there, a link, a file that has other names too, a FIFO or a device, is never opened for writing:
    its name here is removed, and a new file made. Raises OSError for a folder and for another user's file.
    """
    with contextlib.suppress(FileNotFoundError):
        if not _is_plain(path.lstat()):
            path.unlink()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _SAFELY, 0o666)
    status = os.fstat(descriptor)
    if _is_plain(status) and (not hasattr(os, "geteuid") or status.st_uid == os.geteuid()):
        return descriptor
    os.close(descriptor)
    raise PermissionError(errno.EPERM, f"'{path.name}' beside it is no plain file of this user")


def open_lock(path: Path) -> int:
    """A descriptor of the lock file at `path`, made where it is absent; whoever's it is, nothing is written to it.

    A link, a FIFO or a device in its place is removed. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            path.unlink()
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _SAFELY, 0o666)
    except PermissionError:  # another user's
        descriptor = os.open(path, os.O_RDONLY | _SAFELY)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise PermissionError(errno.EPERM, f"'{path.name}' beside it is no plain file")


def _is_plain(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_nlink <= 1  # 0: it was removed since it was opened


def private_folder(path: Path) -> None:
    """Make the hidden folder `path`, or take the one of ours that an earlier run left there; a link is removed.

    Raises OSError where something else lies there, or another user's folder.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.is_symlink():
            path.unlink()
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid != os.geteuid()):
        raise PermissionError(errno.EPERM, f"'{path.name}' beside it is no folder of this user")


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the file of `descriptor` is the one that lies at `path`, and no link to it."""
    try:
        there = path.lstat()
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def try_lock(descriptor: int) -> bool:
    """Lock a file for this descriptor alone; False where another holds it. True, too, where a disk knows no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _NO_LOCKS
    return True


def sync_tree(folder: Path) -> None:
    """Bring every file of a folder to disk, and the folders themselves; raises OSError."""
    for place, _folders, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(place, name), os.O_RDONLY | _SAFELY)  # noqa: PTH118  os.walk's own text
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(place))


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive power loss; where a system cannot open folders there is nothing to do."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
