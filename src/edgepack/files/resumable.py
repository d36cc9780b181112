"""A file that is written from its beginning, may be interrupted at any moment, and is continued by the next run.

What it keeps after an interruption is a `.NAME.partial`; whether those bytes are right is for the caller to check.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from edgepack.errors import EdgepackError, NetworkError, UsageError
from edgepack.files.claim import check_output
from edgepack.files.names import partial_path
from edgepack.files.opened import buffered, is_at, open_own, output_error, raise_if_full, try_lock
from edgepack.files.output import finish, remove_stale

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_CONTINUES = "free some space and run this again: it continues"
_TRIES = 100


def is_worth_keeping(error: BaseException) -> bool:
    """Whether what was written before `error` may be continued: it came from outside, from a server, or from the disk.

    An error of edgepack's own, a digest that differs or a weight that is not finite, would come again.
    """
    own = isinstance(error, EdgepackError) and not isinstance(error, NetworkError)
    return not own or isinstance(error.__cause__, OSError)


@contextmanager
def resumable_output(
    path: Path,
    expected_bytes: int,
    keep: Callable[[BaseException], bool] = is_worth_keeping,
    then: str = _CONTINUES,
) -> Iterator[BinaryIO]:
    """Open `path` for reading what an interrupted run left and for writing; positioned at the beginning.

    The file appears under its name only when the block ends without an error.

    Args:
        path: the final name.
        expected_bytes: of the whole file; what is there already is not counted against the free disk space.
        keep: whether the partial file stays after an error, for the next run.
        then: what a full disk means for the user.

    Raises:
        UsageError: the folder is absent, `path` is a folder, or another run writes it.
        ResourceError: the disk is too small, became full or failed.
    """
    partial = partial_path(path)
    check_output(path, _missing_bytes(partial, expected_bytes), force=True)
    remove_stale(path)
    descriptor = _open_partial(path, partial)
    raw, stream = buffered(descriptor, path, then)
    try:
        yield stream
        stream.flush()
        finish(descriptor, partial, path, then)
    except BaseException as error:
        if not keep(error) and is_at(descriptor, partial):
            with contextlib.suppress(OSError):
                partial.unlink()
        raise_if_full(path, error, then)
        raise
    finally:
        raw.close()


def _missing_bytes(partial: Path, expected_bytes: int) -> int:
    """What the disk must still have room for."""
    try:
        found = partial.lstat()
        taken = getattr(found, "st_blocks", 1 << 60) * 512  # one with holes takes less than its length
        return expected_bytes - min(expected_bytes, found.st_size, taken)
    except OSError:
        return expected_bytes


def _open_partial(path: Path, partial: Path) -> int:
    """A descriptor of the partial file, locked and still in its place.

    One that was renamed while its lock was waited for is a finished file: it is left alone.
    """
    for _ in range(_TRIES):
        try:
            descriptor = open_own(partial)
        except OSError as error:
            raise output_error(path, error) from error
        if not try_lock(descriptor):
            os.close(descriptor)
            break
        if is_at(descriptor, partial):
            return descriptor
        os.close(descriptor)
    raise UsageError(f"output '{path}': another run is writing it")
