"""A folder for a machine without network: archive, wheels, scripts that install once and run, digests of everything.

Which wheels are needed is left to `wheels`. The folder appears under its name only when it is whole.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from edgepack.edge.bundle.wheels import PLATFORMS, Platform, gather
from edgepack.errors import IntegrityError, ResourceError, UsageError
from edgepack.file_digest import write_sha256sums
from edgepack.files.folders import folder_output
from edgepack.packaging.archive import open_archive
from edgepack.packaging.index.member_names import check_member_name
from edgepack.packaging.verify import verify_archive
from edgepack.progress import Progress, silent
from edgepack.quantities import format_size
from edgepack.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgepack.packaging.trust.policy import TrustPolicy

_WHEELS_BYTES = 250 << 20  # about what the wheels of one Python take, unpacked nowhere


@dataclass(frozen=True)
class BundleResult:
    """A finished bundle: its folder, the archive's name in it, wheels, and bytes in all."""

    folder: Path
    archive: str
    wheels: tuple[str, ...]
    bytes: int

    def json(self) -> dict[str, object]:
        """The object that `edgepack bundle --json` prints."""
        return {
            "output": str(self.folder),
            "archive": self.archive,
            "wheels": list(self.wheels),
            "bytes": self.bytes,
        }


def make_bundle(
    archive: Path,
    output: Path,
    *,
    platform: str,
    pythons: Sequence[str],
    wheels: Path | None = None,
    trust: TrustPolicy | None = None,
    progress: Progress = silent,
) -> BundleResult:
    """Make the folder `output` for `archive`.

    Args:
        archive: checked, every byte, before it is copied.
        output: must not be there.
        platform: a name of `PLATFORMS`.
        pythons: versions of Python that the other machine may have, such as `3.12`.
        wheels: a folder with all wheels, so that nothing is fetched.
        trust: whose archives are taken; the user's trust store by default.
        progress: told of bytes checked.

    Raises:
        UsageError: the folder is there, or the platform is unknown.
        IntegrityError: the archive is damaged, or wrongly signed.
        CheckFailedError: nobody trusted signed it.
        NetworkError: a wheel cannot be had.
        ResourceError: the disk is too small.
    """
    target = _checked(archive, output, platform)
    open_archive(archive, trust).close()
    for problem in verify_archive(archive, progress=progress):
        raise IntegrityError(f"'{archive}': {problem.where}: {problem.what}")
    with folder_output(output, inputs=[archive]) as folder:
        (folder / "wheels").mkdir()
        shutil.copyfile(archive, folder / archive.name)
        found = gather(folder / "wheels", target, pythons, wheels)
        _write_scripts(folder, archive.name, pythons)
        write_sha256sums(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return BundleResult(output, archive.name, tuple(path.name for path in found), size)


def _checked(archive: Path, output: Path, platform: str) -> Platform:
    if not archive.is_file():
        raise UsageError(f"'{archive}': no such file")
    check_member_name(archive.name)
    if "'" in archive.name or "%" in archive.name:
        raise UsageError(f"'{archive}': quotes and per cent signs in the name cannot stand in the bundle's scripts")
    if output.exists() or not output.parent.is_dir():
        raise UsageError(f"output '{output}': expected a new folder inside one that exists")
    if platform not in PLATFORMS:
        raise UsageError(f"platform '{platform}': expected one of {', '.join(PLATFORMS)}")
    needed = archive.stat().st_size + _WHEELS_BYTES
    free = shutil.disk_usage(output.parent).free
    if free < needed:
        raise ResourceError(f"output '{output}': needs {format_size(needed)}, disk has {format_size(free)} free")
    return PLATFORMS[platform]


def _write_scripts(folder: Path, archive: str, pythons: Sequence[str]) -> None:
    words = {
        "@ARCHIVE@": archive,
        "@PYTHONS@": " ".join(pythons),
        "@VERSION@": __version__,
        "@COMMANDS@": "run serve embed bench fit verify inspect",
    }
    for name, newline in (("run.sh", "\n"), ("run.cmd", "\r\n"), ("README.txt", "\r\n")):
        text = (files("edgepack.edge.bundle") / f"{name}.template").read_text("utf-8")
        for word, value in words.items():
            text = text.replace(word, value)
        (folder / name).write_text(text, "utf-8", newline=newline)
    (folder / "run.sh").chmod(0o755)
