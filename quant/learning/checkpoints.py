"""Checkpoints of a run on disk: which count, which is the last, and whether a folder has any. No torch.

One counts only once all of it is on disk: a last empty file says so. Writing them is `trainer`'s.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from edgepack.files.opened import sync_folder, sync_tree

if TYPE_CHECKING:
    from pathlib import Path

PREFIX, _WHOLE = "checkpoint-", "whole"


def step_of(checkpoint: Path) -> int:
    """After which step a checkpoint was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a run's folder, oldest first; what a kill or a full disk left half is none."""
    found = [each for each in folder.glob(f"{PREFIX}*") if (each / _WHOLE).is_file()]
    return sorted((each for each in found if each.name.removeprefix(PREFIX).isdigit()), key=step_of)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; None for none."""
    return next(reversed(checkpoints(folder)), None)


def mark_whole(checkpoint: Path) -> None:
    """Bring a checkpoint to disk and make it count; raises OSError."""
    sync_tree(checkpoint)
    (checkpoint / _WHOLE).touch()
    sync_folder(checkpoint)


def remove_halves(folder: Path) -> None:
    """Remove checkpoints that are not whole."""
    for each in folder.glob(f"{PREFIX}*"):
        if not (each / _WHOLE).is_file():
            shutil.rmtree(each, ignore_errors=True)


def any_kept(folder: Path) -> bool:
    """Whether a whole checkpoint of any run lies in a folder or below it."""
    return any(folder.rglob(f"{PREFIX}*/{_WHOLE}"))
