"""Whether an archive's model is installed or read where it is, and what must be on the disk for the latter.

Reading it is left to `edge.llama.handles`, installing to `cache`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from edgepack.edge.install.members import read_template
from edgepack.edge.llama.check import check_runnable
from edgepack.edge.llama.loads import ensure_loads
from edgepack.edge.llama.virtual_file import can_open_virtual_files
from edgepack.gguf.variant import is_variant
from edgepack.packaging.archive import open_archive
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgepack.edge.install.cache import ModelCache
    from edgepack.gguf.reader import GGUFHeader
    from edgepack.packaging.archive import Archive
    from edgepack.packaging.trust.policy import TrustPolicy
    from edgepack.progress import Progress


@dataclass(frozen=True)
class InPlace:
    """A model that is read out of its archive.

    Attributes:
        header: of its GGUF, checked.
        adapters: installed LoRA adapters of the archive, in its order.
        projector: the installed file of what sees, where the archive holds it.
        template: a chat template of the archive, which stands above the model's own.
    """

    header: GGUFHeader
    adapters: tuple[Path, ...]
    projector: Path | None
    template: str | None


class FromArchive(Enum):
    """When a model is decoded straight into memory instead of being installed."""

    AUTO = "auto"  # when the installed file would not fit on the disk
    ALWAYS = "always"
    NEVER = "never"


def read_in_place(
    file: Path,
    wish: FromArchive,
    cache: ModelCache,
    trust: TrustPolicy | None,
    progress: Progress,
    note: Callable[[str], object],
) -> InPlace | None:
    """The model of an archive as it will be read out of it; None where it is to be installed.

    Args:
        file: the archive.
        wish: when to do so.
        cache: where models and adapters are installed.
        trust: whose archives are taken; the user's trust store by default.
        progress: told of bytes of adapters restored: those are files of their own for llama.cpp.
        note: told why a model is read in place, or why it cannot be.

    Raises:
        GGUFError, ArchiveError, IntegrityError: it is not sound.
        ResourceError: the disk has no room even for the adapters.
    """
    if wish is FromArchive.NEVER:
        return None
    with open_archive(file, trust) as archive:
        if wish is FromArchive.AUTO and not _lacks_room(archive, cache, note):
            return None
        header = archive.gguf_header()
        if (reason := "its weights are coded" if is_variant(header) else _no_files()) is not None:
            note(f"'{file}' cannot be run where it is: {reason}; it is installed")
            return None
        check_runnable(header)
        ensure_loads(header, archive.read_range(archive.main, 0, header.data_start))
        template = read_template(archive)
    adapters = cache.install_adapters(file, trust=trust, progress=progress)
    projector = cache.install_projector(file, trust=trust, progress=progress)
    return InPlace(header, adapters, projector, template)


def _lacks_room(archive: Archive, cache: ModelCache, note: Callable[[str], object]) -> bool:
    """Whether the model is not installed and could not be."""
    main = archive.main
    if cache.find(main.sha256) is not None:
        return False
    missing, free = cache.missing_bytes(main), shutil.disk_usage(cache.folder).free
    if free >= missing:
        return False
    sizes = f"{format_size(missing)}, {format_size(free)} are free"
    note(f"decoding the model into memory at each start: installing it in '{cache.folder}' needs {sizes}")
    return True


def _no_files() -> str | None:
    return None if can_open_virtual_files() else "this system's C library has no fopencookie"
