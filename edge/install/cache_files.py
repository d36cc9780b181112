"""The files of the cache under the SHA-256 of their bytes, what is recorded of each, and whether it still holds.

Installing, using and removing them is `cache`'s.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from edgepack.edge.install.stamp import Stamp, describe, stamp_of
from edgepack.file_digest import file_sha256
from edgepack.files.names import partial_path
from edgepack.files.output import atomic_output

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.packaging.index.contents import Member
    from edgepack.progress import Progress


@dataclass(frozen=True)
class CacheEntry:
    """One installed file.

    Attributes:
        sha256: of its bytes, in hexadecimal; also its name in the cache.
        path: the file.
        name: the member's name in the archive that it came from.
        bytes: length; of what is there where the entry is not complete.
        used: when it was last started, in seconds since the epoch.
        complete: False for what an interrupted installation left.
    """

    sha256: str
    path: Path
    name: str
    bytes: int
    used: float
    complete: bool


class CacheFiles:
    """Files, records, locks and leases by digest.

    Args:
        folder: where they lie; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self) -> list[CacheEntry]:
        """Everything there is, the most recently used first, with what interrupted installations left."""
        found = [self._entry(path) for path in self.folder.glob("*.json")]
        found += [self._unfinished(path) for path in self.folder.glob(".*.gguf.partial")]
        return sorted((entry for entry in found if entry is not None), key=lambda entry: -entry.used)

    def record(self, sha256: str, name: str, origin: str) -> None:
        """Note a finished file: its name for people, and what it was made from."""
        record = {"name": name, "archive": origin, "stamp": asdict(stamp_of(self.path(sha256)))}
        with atomic_output(self.record_path(sha256)) as stream:
            stream.write(json.dumps(record).encode())

    def path(self, sha256: str) -> Path:
        """The file of that digest, whether it is there or not; and so the next three."""
        return self.folder / f"{sha256}.gguf"

    def record_path(self, sha256: str) -> Path:
        """What is known of it; written last."""
        return self.folder / f"{sha256}.json"

    def lock_path(self, sha256: str) -> Path:
        """Held while it is installed."""
        return self.folder / f"{sha256}.lock"

    def use_path(self, sha256: str) -> Path:
        """Leased while it is used."""
        return self.folder / f"{sha256}.use"

    def missing_bytes(self, member: Member) -> int:
        """What installing a member still takes of the disk."""
        partial = partial_path(self.path(member.sha256))
        return member.bytes - (partial.stat().st_size if partial.exists() else 0)

    def problem(self, sha256: str, verify: bool, progress: Progress) -> str | None:
        """Why the entry cannot be used as it stands, or None."""
        path = self.path(sha256)
        if not path.exists():
            return "absent"
        try:
            record = json.loads(self.record_path(sha256).read_text())
            expected = Stamp(**record["stamp"])
        except (OSError, ValueError, KeyError, TypeError):
            # The file is renamed into place before its record is written: after a kill between the two it is whole.
            return self._adopt(sha256, progress)
        found = stamp_of(path)
        if found != expected:
            return f"expected {describe(expected)}, got {describe(found)}"
        return self.full_problem(sha256, progress) if verify else None

    def _adopt(self, sha256: str, progress: Progress) -> str | None:
        path = self.path(sha256)
        if (problem := self.full_problem(sha256, progress)) is not None:
            return problem
        self.record(sha256, path.name, "")
        return None

    def full_problem(self, sha256: str, progress: Progress) -> str | None:
        """Check every byte; what is wrong, or None."""
        found = file_sha256(self.path(sha256), "verifying", progress)
        return None if found == sha256 else f"SHA-256 is {found[:16]}…, not {sha256[:16]}…"

    def _entry(self, record_path: Path) -> CacheEntry | None:
        sha256 = record_path.stem
        path = self.path(sha256)
        try:
            name = str(json.loads(record_path.read_text())["name"])
            return CacheEntry(sha256, path, name, path.stat().st_size, record_path.stat().st_mtime, complete=True)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _unfinished(self, path: Path) -> CacheEntry | None:
        with contextlib.suppress(OSError):
            status = path.stat()
            sha256 = path.name.removeprefix(".").removesuffix(".gguf.partial")
            return CacheEntry(sha256, path, "(not finished)", status.st_size, status.st_mtime, complete=False)
        return None
