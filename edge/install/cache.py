"""Archive → verified GGUF in this machine's cache, once; later starts find it there and map it at once.

Files lie under the SHA-256 of their bytes, so equal models share one and a name cannot lie. Restoring bytes is left
to `packaging.restore.unpack` (resumable, every chunk checked), opening the model to `runtime`.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.edge.install.cache_files import CacheFiles
from edgepack.edge.install.cache_folder import cache_folder
from edgepack.edge.install.lease import Lease
from edgepack.edge.install.lock import locked
from edgepack.edge.install.members import adapters_in, projectors_in, read_template
from edgepack.errors import ResourceError
from edgepack.file_digest import file_sha256
from edgepack.files.names import partial_path
from edgepack.files.opened import open_lock, try_lock
from edgepack.gguf.reader import read_header
from edgepack.packaging.archive import open_archive
from edgepack.packaging.restore.unpack import restore_member
from edgepack.packaging.trust.policy import machine_policy
from edgepack.packaging.trust.releases import rollback
from edgepack.progress import Progress, silent
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgepack.edge.install.cache_files import CacheEntry
    from edgepack.gguf.reader import GGUFHeader
    from edgepack.packaging.archive import Archive
    from edgepack.packaging.index.contents import Member
    from edgepack.packaging.trust.policy import TrustPolicy


@dataclass(frozen=True)
class Installed:
    """An archive's files, ready to be opened.

    Attributes:
        model: the GGUF.
        header: its header; whether llama.cpp would survive it is not checked yet.
        adapters: LoRA adapters of the archive, in its order.
        projector: what sees, where the archive holds it.
        template: a chat template of the archive, which stands above the model's own.
        fresh: whether anything had to be restored now.
    """

    model: Path
    header: GGUFHeader
    adapters: tuple[Path, ...]
    projector: Path | None
    template: str | None
    fresh: bool


class ModelCache:
    """The installed files of this machine.

    Args:
        folder: where they lie; the user's cache folder by default.
        note: told, in a sentence, what a person would like to know: waiting, rebuilding.
    """

    def __init__(self, folder: Path | None = None, note: Callable[[str], object] = lambda _text: None) -> None:
        self.folder = (folder or cache_folder()) / "models"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files = CacheFiles(self.folder)
        self._note = note
        self._leases: dict[str, Lease] = {}  # on what was given out: it is in use as long as this object lives

    def install(
        self, archive: Path, *, verify: bool = False, trust: TrustPolicy | None = None, progress: Progress = silent
    ) -> Installed:
        """Restore what of `archive` is not installed yet.

        Args:
            archive: the `.edgepack`.
            verify: check every byte of what is installed, not only its stamp.
            trust: whose archives are taken; the user's trust store by default.
            progress: told of bytes restored or checked.

        Raises:
            ArchiveError, IntegrityError: the archive is not sound; nothing is installed.
            CheckFailedError: nobody trusted signed it.
            ResourceError: the disk is too small.
        """
        with open_archive(archive, trust) as opened:
            main, others, eyes = opened.main, adapters_in(opened), projectors_in(opened)
            opened.gguf_header()  # so that one out of proportion is refused before anything is written
            template = read_template(opened)
            older = rollback(opened, machine_policy() if trust is None else trust)
            if older is not None:
                self._note(older)
            members = (main, *others, *eyes)
            restored = [self._install_member(opened, member, verify, progress) for member in members]
        path = restored[0][0]
        header = read_header(path)
        model = native_form(path, self, progress, header)
        return Installed(
            model=model,
            header=header if model == path else read_header(model),
            adapters=tuple(path for path, _fresh in restored[1 : 1 + len(others)]),
            projector=restored[-1][0] if eyes else None,
            template=template,
            fresh=any(fresh for _path, fresh in restored),
        )

    def install_adapters(
        self, archive: Path, *, trust: TrustPolicy | None = None, progress: Progress = silent
    ) -> tuple[Path, ...]:
        """Restore what of an archive's adapters is not installed yet, but not its model; in its order.

        Raises:
            ArchiveError, IntegrityError, ResourceError: as `install`.
        """
        with open_archive(archive, trust) as opened:
            return tuple(self._install_member(opened, member, False, progress)[0] for member in adapters_in(opened))

    def install_projector(
        self, archive: Path, *, trust: TrustPolicy | None = None, progress: Progress = silent
    ) -> Path | None:
        """Restore an archive's projector alone, where it holds one; raises as `install`."""
        with open_archive(archive, trust) as opened:
            eyes = projectors_in(opened)
            return self._install_member(opened, eyes[0], False, progress)[0] if eyes else None

    def entries(self) -> list[CacheEntry]:
        """Everything installed, the most recently used first, with what interrupted installations left."""
        return self._files.entries()

    def remove(self, entry: CacheEntry) -> bool:
        """Remove an entry; False where somebody else installs or uses it, who then keeps it."""
        self._leases.pop(entry.sha256, None)
        descriptor = open_lock(self._files.lock_path(entry.sha256))
        try:
            if not try_lock(descriptor):
                return False
            lease = Lease.alone(self._files.use_path(entry.sha256))
            if lease is None:
                return False
            file = self._files.path(entry.sha256)
            for path in (
                self._files.record_path(entry.sha256),
                file,
                partial_path(file),
                self._files.use_path(entry.sha256),
            ):
                path.unlink(missing_ok=True)
            lease.close()
            return True
        finally:
            os.close(descriptor)

    def find(self, sha256: str) -> Path | None:
        """The installed file of that digest when its stamp holds; marks it as used."""
        lease = Lease.shared(self._files.use_path(sha256))
        if self._files.problem(sha256, verify=False, progress=silent) is not None:
            return None
        self._leases[sha256] = lease
        os.utime(self._files.record_path(sha256))
        return self._files.path(sha256)

    def add(self, path: Path, name: str, origin: str) -> tuple[Path, str]:
        """Move a finished file of the cache's own folder under its digest; returns where it is, and the digest.

        Args:
            path: in `folder`; it is renamed.
            name: for people, as archives name their members.
            origin: what it was made from.
        """
        sha256 = file_sha256(path)
        with locked(self._files.lock_path(sha256)):
            path.replace(self._files.path(sha256))
            self._files.record(sha256, name, origin)
            self._leases[sha256] = Lease.shared(self._files.use_path(sha256))
        return self._files.path(sha256), sha256

    def problem(self, entry: CacheEntry) -> str | None:
        """Check every byte of an entry; what is wrong with it, or None."""
        if not entry.complete:
            return "its installation was interrupted"
        return self._files.full_problem(entry.sha256, silent)

    def _install_member(self, archive: Archive, member: Member, verify: bool, progress: Progress) -> tuple[Path, bool]:
        """(path, whether it had to be restored); of the archive as it was opened, whatever lies under its name now."""
        waiting = f"another process is installing '{member.name}': waiting for it"
        with locked(self._files.lock_path(member.sha256), lambda: self._note(waiting)):
            path = self._files.path(member.sha256)
            self._leases[member.sha256] = Lease.shared(self._files.use_path(member.sha256))
            problem = self._files.problem(member.sha256, verify, progress)
            if problem is None:
                os.utime(self._files.record_path(member.sha256))  # last used now, as `cache list` and `prune` see it
                return path, False
            if path.exists():
                self._note(f"cache entry '{path}' is damaged ({problem}): it is rebuilt")
                path.unlink()
            self._restore(archive, member, path, progress)
            return path, True

    def _restore(self, archive: Archive, member: Member, path: Path, progress: Progress) -> None:
        free, missing = shutil.disk_usage(self.folder).free, self._files.missing_bytes(member)
        if free < missing:
            raise ResourceError(
                f"cache '{self.folder}': '{member.name}' needs {format_size(missing)} more, the disk has "
                f"{format_size(free)} free; `edgepack cache prune` frees {format_size(self._installed_bytes())}"
            )
        restore_member(archive, path, member=member.name, progress=progress)
        self._files.record(member.sha256, member.name, archive.path.name)

    def missing_bytes(self, member: Member) -> int:
        """What installing a member still takes of the disk."""
        return self._files.missing_bytes(member)

    def _installed_bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries())


def native_form(path: Path, cache: ModelCache, progress: Progress = silent, header: GGUFHeader | None = None) -> Path:
    """The GGUF that llama.cpp runs: `path` itself, or what a file of the variant decodes to, kept in `cache`.

    `header` is the file's, where it was read already.

    Raises:
        GGUFError, CodecError: the file is not sound, or made by a newer edgepack.
        ResourceError: the disk is too small.
    """
    from edgepack.edge.install.native_cache import cached_native

    return cached_native(path, cache, progress, header)


def prune(
    cache: ModelCache, *, older_than: float | None = None, keep_bytes: int | None = None, everything: bool = False
) -> list[CacheEntry]:
    """Remove entries, those unused longest first, but none that is being installed or used; returns the removed.

    Args:
        cache: where.
        older_than: remove what was not used for so many seconds.
        keep_bytes: then remove until at most so many bytes are left.
        everything: remove all. Without any of the three, what interrupted installations left is removed.
    """
    now, removed = time.time(), []
    entries = cache.entries()
    left = sum(entry.bytes for entry in entries)
    for entry in reversed(entries):
        old = older_than is not None and now - entry.used > older_than
        over = keep_bytes is not None and left > keep_bytes
        if (everything or old or over or not entry.complete) and cache.remove(entry):
            removed.append(entry)
            left -= entry.bytes
    return removed
