"""Folders that are written: hidden ones for what is made on the way, and ones that get their name when they are whole.

Claiming a name is `claim`'s, files are `output`'s.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.files.claim import claimed_output
from edgepack.files.names import hidden_path
from edgepack.files.opened import (
    output_error,
    private_folder,
    sync_folder,
    sync_tree,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_MODE_BITS = 0o777


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
