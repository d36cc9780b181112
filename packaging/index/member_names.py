"""Which member names are allowed: none that could leave the folder it is extracted into, on any system."""

from __future__ import annotations

import re

from edgepack.errors import ArchiveError
from edgepack.packaging.format import MAX_NAME_BYTES

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
