"""What differs between two versions of an archive, for people: members, metadata, tensors, settings.

It compares digests and headers; nothing is restored but the headers of the models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.errors import EdgepackError
from edgepack.packaging.format import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.packaging.archive import Archive
    from edgepack.packaging.index.contents import Member

_LISTED = 8


@dataclass(frozen=True)
class Changes:
    """Differences from an old archive to a new one.

    Attributes:
        members: member → "added", "removed" or "changed".
        metadata: key of the model's metadata → the same words.
        tensors: tensor of the model → the same words.
    """

    members: dict[str, str]
    metadata: dict[str, str]
    tensors: dict[str, str]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.members or self.metadata or self.tensors)

    def lines(self) -> list[str]:
        """A line a kind, the first few by name."""
        kinds = (("files", self.members), ("metadata", self.metadata), ("tensors", self.tensors))
        return [f"{kind}: {_listed(found)}" for kind, found in kinds if found]


def _listed(found: Mapping[str, str]) -> str:
    shown = ", ".join(f"{name} {what}" for name, what in list(found.items())[:_LISTED])
    return shown if len(found) <= _LISTED else f"{shown} and {len(found) - _LISTED} more"


def changes(old: Archive, new: Archive) -> Changes:
    """What `new` has otherwise than `old`.

    Raises:
        IntegrityError: the header of a model is damaged.
    """
    members = _differences(
        {member.name: member.sha256 for member in old.members}, {member.name: member.sha256 for member in new.members}
    )
    before, after = _model(old), _model(new)
    if before is None or after is None or before.sha256 == after.sha256:
        return Changes(members, {}, {})
    return Changes(members, _metadata_changes(old, new), _differences(_tensors(before), _tensors(after)))


def _model(archive: Archive) -> Member | None:
    return next((member for member in archive.members if member.role is Role.GGUF), None)


def _tensors(member: Member) -> dict[str, bytes]:
    return {segment.entry.name: segment.entry.sha256 for segment in member.segments if segment.entry.name}


def _metadata_changes(old: Archive, new: Archive) -> dict[str, str]:
    try:
        before, after = old.gguf_header().metadata, new.gguf_header().metadata
    except EdgepackError:
        return {"(header)": "changed"}  # a member that is called a GGUF and is none
    return _differences(dict(before), dict(after))


def _differences(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, str]:
    found = {name: "removed" for name in old if name not in new}
    for name, value in new.items():
        if name not in old:
            found[name] = "added"
        elif old[name] != value:
            found[name] = "changed"
    return found
