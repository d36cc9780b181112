"""Which member names are allowed: none that could leave the folder it is extracted into, on any system."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edgepack.errors import ArchiveError
from edgepack.packaging.format import MAX_NAME_BYTES

if TYPE_CHECKING:
    from collections.abc import Collection

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # device names of Windows


def check_member_name(name: str) -> None:
    """Accept relative paths with forward slashes, such as `adapters/poet.gguf`.

    Raises:
        ArchiveError: absolute, with `..` or `.` or an empty part, with a drive, device or control character, or long.
    """
    parts = name.split("/")
    if (
        not name
        or len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES
        or _FORBIDDEN.search(name)
        or any(part in ("", ".", "..") or part.endswith((" ", ".")) or _RESERVED.fullmatch(part) for part in parts)
    ):
        raise ArchiveError(f"member name {name!r}: expected a relative path that stays inside its folder")


def check_folders(names: Collection[str]) -> None:
    """Accept names that can lie in one folder together.

    Raises:
        ArchiveError: one is a file and another's folder, such as `a` and `a/b`.
    """
    for name in names:
        end = name.find("/")
        while end >= 0:
            if name[:end] in names:
                raise ArchiveError(f"member name {name!r}: its folder {name[:end]!r} is a member itself")
            end = name.find("/", end + 1)
