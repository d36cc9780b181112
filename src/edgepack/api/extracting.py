"""`edgepack.extract`: members and tensors taken out of an archive, the rest of it unread."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.api.trust import Trusted, policy_for
from edgepack.errors import UsageError
from edgepack.files.claim import claimed_output
from edgepack.files.folders import inner_path
from edgepack.packaging.archive import Archive, open_archive
from edgepack.packaging.restore.unpack import extract_tensor, restore_member
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.api.values import FilePath
    from edgepack.progress import Progress


@dataclass(frozen=True)
class Extracted:
    """A member, or a tensor's raw blocks, that was taken out: the file, its length and its SHA-256 (hexadecimal)."""

    output: Path
    bytes: int
    sha256: str


def extract(
    file: FilePath,
    names: Sequence[str] = (),
    folder: FilePath = ".",
    *,
    members: bool = False,
    trusted: Trusted = (),
    force: bool = False,
    progress: Progress = silent,
) -> tuple[Extracted, ...]:
    """Take members (by name) or tensors of the model (by name, into NAME.bin) out of an archive.

    Only the chunks that hold them are read.

    Args:
        file: the `.edgepack`.
        names: of members and tensors.
        folder: to write into; it must exist.
        members: take every member but the model too.
        trusted: files of public keys, one of which must have signed (by default: of the trust store), or a policy.
        force: replace files that are there already; never the archive.
        progress: told of bytes restored.

    Raises:
        UsageError: nothing was named, there is no such member or tensor, or the folder is absent.
        ArchiveError, IntegrityError: the archive is not sound.
        CheckFailedError: nobody trusted signed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"output '{folder}': expected a folder that exists")
    trust = policy_for(trusted)
    with open_archive(Path(file), trust) as archive:
        wanted = [*names, *(m.name for m in archive.members if members and m is not archive.main)]
        if not wanted:
            raise UsageError("name a member or a tensor, or ask for --members; `edgepack inspect --tensors` lists them")
        return tuple(_extract(archive, name, folder, force, progress) for name in dict.fromkeys(wanted))


def _extract(archive: Archive, name: str, folder: Path, force: bool, progress: Progress) -> Extracted:
    if name not in [member.name for member in archive.members]:
        target = folder / f"{name.replace('/', '_')}.bin"
        with claimed_output(target, inputs=[archive.path], force=force):
            segment = extract_tensor(archive, name, target)
        return Extracted(target, segment.entry.tensor_bytes, segment.entry.sha256.hex())
    target = inner_path(folder, name)
    with claimed_output(target, inputs=[archive.path], force=force):
        result = restore_member(archive, target, member=name, progress=progress)
    return Extracted(target, result.bytes, result.sha256)
