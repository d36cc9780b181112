"""What of an archive is installed beside its model: adapters, a projector, a chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import ArchiveError, IntegrityError
from edgepack.packaging.format import Role

if TYPE_CHECKING:
    from edgepack.packaging.archive import Archive
    from edgepack.packaging.index.contents import Member

_MOST_ADAPTERS = 64  # of an archive; each is a file of its own on the disk, and one that llama.cpp applies
MAX_TEMPLATE_BYTES = 1 << 20  # of a chat template; the longest published ones have about 20,000


def adapters_in(archive: Archive) -> list[Member]:
    """In the archive's order; raises ArchiveError where there are too many."""
    main = archive.main
    found = [member for member in archive.members if member.role is Role.GGUF and member is not main]
    if len(found) > _MOST_ADAPTERS:
        raise ArchiveError(f"'{archive.path}': expected at most {_MOST_ADAPTERS} adapters, got {len(found)}")
    return found


def projectors_in(archive: Archive) -> list[Member]:
    """The one that the archive holds, or none."""
    return [member for member in archive.members if member.role is Role.PROJECTOR][:1]


def read_template(archive: Archive) -> str | None:
    """A chat template that is a member of its own, or None."""
    for member in archive.members:
        if member.role is Role.CHAT_TEMPLATE:
            if member.bytes > MAX_TEMPLATE_BYTES:
                where = f"'{archive.path}': member '{member.name}'"
                raise ArchiveError(f"{where}: expected at most {MAX_TEMPLATE_BYTES} bytes, got {member.bytes}")
            try:
                return archive.read_member(member.name).decode("utf-8")
            except UnicodeDecodeError:
                raise IntegrityError(f"'{archive.path}': member '{member.name}': expected UTF-8 text") from None
    return None
