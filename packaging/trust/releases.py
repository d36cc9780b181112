"""Remembers the newest release of a model that this machine took from a trusted signer, and tells of an older one.

An old archive is signed as rightly as the new one that mends it: only a memory tells them apart. A release is what
`edgepack pack --release` noted in the archive's attributes, under the signature; archives without one are not compared.
The memory lies beside the trust store.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.errors import UsageError
from edgepack.files.output import atomic_output
from edgepack.packaging.trust.signatures import SignatureState
from edgepack.packaging.trust.store import store_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgepack.packaging.archive import Archive
    from edgepack.packaging.trust.policy import TrustPolicy

_VERSION = re.compile(r"\d{1,9}(\.\d{1,9}){0,5}")
_MAX_BYTES, _MAX_NAME = 1 << 20, 200


@dataclass(frozen=True)
class Release:
    """A model's name and its version, numbers with dots between them."""

    model: str
    version: str

    @property
    def order(self) -> tuple[int, ...]:
        """What versions are sorted by: 1.10 after 1.9, 1.0 like 1."""
        numbers = [int(part) for part in self.version.split(".")]
        while numbers and numbers[-1] == 0:
            numbers.pop()
        return tuple(numbers)

    @property
    def attributes(self) -> dict[str, str]:
        """As an archive's attributes say it."""
        return {"model": self.model, "release": self.version}


def checked_release(model: str, version: str) -> Release:
    """A release to be noted; raises UsageError for a version of another form."""
    if not _VERSION.fullmatch(version):
        raise UsageError(f"--release: expected numbers with dots between them, such as 1.2, got '{version:.60}'")
    return Release(model[:_MAX_NAME], version)


def release_of(attributes: Mapping[str, Any]) -> Release | None:
    """The release that an archive's attributes note; None where they note none that could be compared."""
    model, version = attributes.get("model"), attributes.get("release")
    if not isinstance(model, str) or not isinstance(version, str) or len(model) > _MAX_NAME:
        return None
    return Release(model, version) if _VERSION.fullmatch(version) else None


def rollback(archive: Archive, trust: TrustPolicy) -> str | None:
    """A sentence where an archive is older than one that was taken before from the same signer; remembers newer ones.

    Args:
        archive: open, and taken under `trust`.
        trust: whose keys count; where it has none, nothing is compared: anybody could have noted any version.

    Raises:
        UsageError: the memory cannot be understood.
    """
    release, report = release_of(archive.index.attributes), trust.judge(archive.index_record, archive.signatures)
    if release is None or not trust.keys or report.state is not SignatureState.TRUSTED:
        return None
    path = memory_path()
    seen = _read(path)
    signers = [key for key in trust.keys if key.key in report.keys]
    told = None
    for key in signers:
        newest = release_of({"model": release.model, "release": seen.get(key.key, {}).get(release.model)})
        if newest is not None and newest.order > release.order:
            told = (
                f"'{archive.path.name}' is release {release.version} of '{release.model}': this machine has taken "
                f"{newest.version} by '{key.name}' before; an old release may lack what a newer one mends"
            )
        elif newest is None or newest.order < release.order:
            seen.setdefault(key.key, {})[release.model] = release.version
            _write(path, seen)
    return told


def memory_path() -> Path:
    """Beside the trust store."""
    return store_path().with_name("releases.json")


def _read(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_BYTES:
        raise UsageError(f"releases '{path}': expected at most {_MAX_BYTES} bytes; remove it to begin anew")
    try:
        table = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict) or not all(isinstance(each, dict) for each in table.values()):
        raise UsageError(f"releases '{path}': expected JSON, key → model → version; remove it to begin anew")
    return table


def _write(path: Path, seen: Mapping[str, Mapping[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_output(path) as stream:
        stream.write(json.dumps(seen, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n")
