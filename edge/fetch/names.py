"""What a fetched file is called here: the last part of its address, if that is a name that every system takes."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from edgepack.errors import ArchiveError, UsageError
from edgepack.packaging.index.member_names import check_member_name


def output_of(url: str, output: Path | None) -> Path:
    """The final path: `output`, the address's own name inside it where it is a folder, or that name here.

    Raises:
        UsageError: the address ends in no usable name and `output` names no file.
    """
    if output is not None and not output.is_dir():
        return output
    name = unquote(urlsplit(url).path).rsplit("/", 1)[-1]
    try:
        check_member_name(name)
    except ArchiveError:
        raise UsageError(f"'{url}' ends in no name for a file: say one with -o") from None
    return (output or Path()) / name
