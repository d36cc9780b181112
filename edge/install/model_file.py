"""A file that a user names, made ready to open: a GGUF as it stands, an archive installed first.

What is done with the model is left to `runtime`; whether it fits to `fit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.edge.install.in_place import FromArchive, read_in_place
from edgepack.edge.llama.check import check_runnable, read_runnable
from edgepack.edge.llama.loads import ensure_loads
from edgepack.errors import UsageError
from edgepack.gguf import keys

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgepack.edge.install.cache import ModelCache
    from edgepack.gguf.reader import GGUFHeader
    from edgepack.packaging.trust.policy import TrustPolicy
    from edgepack.progress import Progress


@dataclass(frozen=True)
class ModelFile:
    """A model that can be opened.

    Attributes:
        path: the GGUF, or an archive whose model is decoded into memory when it is opened.
        header: its header, checked.
        adapters: LoRA adapters that belong to it.
        projector: what sees, where the archive holds it.
        template: the chat template that counts, or None where there is none.
        fresh: whether it was installed just now.
        held: keeps what is installed from being pruned while this object lives.
    """

    path: Path
    header: GGUFHeader
    adapters: tuple[Path, ...] = ()
    projector: Path | None = None
    template: str | None = None
    fresh: bool = False
    held: ModelCache | None = None


def prepare(
    file: Path,
    *,
    verify: bool = False,
    from_archive: FromArchive = FromArchive.NEVER,
    trust: TrustPolicy | None = None,
    progress: Progress,
    note: Callable[[str], object] = lambda _text: None,
) -> ModelFile:
    """Make `file` ready to open.

    Args:
        file: a GGUF or an `.edgepack`.
        verify: check every byte of an installed archive, or every tensor's range of a GGUF (always done).
        from_archive: when an archive's model is read where it is instead of being installed.
        trust: whose archives are taken; the user's trust store by default.
        progress: told of bytes restored.
        note: told what a person would like to know.

    Raises:
        UsageError: the file does not exist.
        GGUFError, ArchiveError, IntegrityError: it is not sound, or llama.cpp does not survive it.
        CheckFailedError: nobody trusted signed it.
    """
    from edgepack.packaging.archive import is_archive

    _check_file(file)
    from edgepack.edge.install.cache import ModelCache, native_form
    from edgepack.gguf.variant import is_variant

    if not is_archive(file):
        _check_plain(file, trust)
        header = read_runnable(file)
        if is_variant(header):
            cache = ModelCache(note=note)
            native = native_form(file, cache, progress)
            runs = read_runnable(native)
            ensure_loads(runs)
            return ModelFile(native, runs, template=_own_template(header), held=cache)
        ensure_loads(header)
        return ModelFile(file, header, template=_own_template(header))
    cache = ModelCache(note=note)
    if (found := read_in_place(file, from_archive, cache, trust, progress, note)) is not None:
        template = found.template if found.template is not None else _own_template(found.header)
        return ModelFile(file, found.header, found.adapters, found.projector, template, held=cache)
    installed = cache.install(file, verify=verify, trust=trust, progress=progress)
    header = installed.header
    check_runnable(header)
    ensure_loads(header)
    template = installed.template if installed.template is not None else _own_template(header)
    return ModelFile(
        installed.model, header, installed.adapters, installed.projector, template, fresh=installed.fresh, held=cache
    )


def peek(file: Path, trust: TrustPolicy | None = None) -> GGUFHeader:
    """The checked header of the GGUF that would run: of a file, or of the model inside an archive; installs nothing.

    Raises:
        GGUFError, ArchiveError, CodecError: the file is not sound.
        CheckFailedError: nobody trusted signed it.
    """
    from edgepack.edge.install.native import native_header
    from edgepack.gguf.variant import is_variant
    from edgepack.packaging.archive import is_archive, open_archive

    _check_file(file)
    if is_archive(file):
        with open_archive(file, trust) as archive:
            header = archive.gguf_header()
        check_runnable(header)
    else:
        _check_plain(file, trust)
        header = read_runnable(file)
    return native_header(header) if is_variant(header) else header


def projector_bytes(file: Path, trust: TrustPolicy | None = None) -> int:
    """Length of what sees in an archive; 0 where it has none, and for a GGUF, whose projector has to be named.

    Raises:
        ArchiveError: the file is not sound.
        CheckFailedError: nobody trusted signed it.
    """
    from edgepack.packaging.archive import is_archive, open_archive
    from edgepack.packaging.format import Role

    if not is_archive(file):
        return 0
    with open_archive(file, trust) as archive:
        return next((member.bytes for member in archive.members if member.role is Role.PROJECTOR), 0)


def _check_file(file: Path) -> None:
    """Raise UsageError unless `file` is one, with what to do where it is a folder."""
    if file.is_file():
        return
    if not file.is_dir():
        raise UsageError(f"'{file}': no such file")
    if models := sorted(path.name for pattern in ("*.edgepack", "*.gguf") for path in file.glob(pattern)):
        raise UsageError(f"'{file}': a folder: expected a file in it, such as '{file / models[0]}'")
    if (file / "config.json").is_file() or any(file.glob("*.safetensors")):
        raise UsageError(
            f"'{file}': a checkpoint: make a file of it first: edgepack export {file} --target gguf-q4km -o model.gguf"
        )
    raise UsageError(f"'{file}': a folder: expected a GGUF or an .edgepack")


def _check_plain(file: Path, trust: TrustPolicy | None) -> None:
    if trust is not None:
        trust.check_plain(file)


def _own_template(header: GGUFHeader) -> str | None:
    template = header.get(keys.CHAT_TEMPLATE)
    return template if isinstance(template, str) and template else None
