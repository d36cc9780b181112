"""Where a model lies, as functions take it: a path, or a URL where that will do. Opening it is `pipeline.located`'s."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.files.remote import is_url

if TYPE_CHECKING:
    from edgepack.api.values import FilePath


def local_path(place: FilePath, why: str) -> Path:
    """A place as a path; raises UsageError, which says why, where it is a URL."""
    if is_url(place):
        raise UsageError(f"'{place}': {why}: expected a folder or a GGUF, got a URL")
    return Path(place)


def check_there(*paths: Path) -> None:
    """Raise UsageError where one of them is no file or folder."""
    for path in paths:
        if not path.exists():
            raise UsageError(f"'{path}': no such file or folder")


def files_of(*places: FilePath | None) -> list[Path]:
    """The places that are files or folders here, which an output must not replace."""
    return [Path(place) for place in places if place is not None and not is_url(place)]
