"""`edgepack.pack` and its like: archives made and restored; `checking` checks them, `updates` makes patches."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from edgepack.api.opening import ignore
from edgepack.api.trust import Trusted, policy_for
from edgepack.api.values import FilePath, optional_path, paths
from edgepack.edge.llama.check import check_adapter
from edgepack.edge.llama.check_projector import check_projector, is_projector
from edgepack.errors import UsageError
from edgepack.files.claim import claimed_output
from edgepack.files.folders import inner_path, scratch_beside
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.gguf.variant import is_variant
from edgepack.packaging.archive import Archive, is_archive, open_archive
from edgepack.packaging.coding.streams import DEFAULT_LEVEL
from edgepack.packaging.estimate import Estimate, estimate_archive
from edgepack.packaging.pack import STANDARD_STREAM, PackResult, pack_archive
from edgepack.packaging.plain_gguf import is_gguf
from edgepack.packaging.restore.stream import unpack_stream
from edgepack.packaging.restore.unpack import UnpackResult, extract_tensor, restore_member, unpack_archive
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edgepack.gguf.types import TensorInfo
    from edgepack.packaging.trust.policy import TrustPolicy
    from edgepack.progress import Progress


def pack(
    file: FilePath,
    output: FilePath | None = None,
    *,
    level: int = DEFAULT_LEVEL,
    dictionary: bool = True,
    include: Sequence[FilePath] = (),
    projector: FilePath | None = None,
    base: FilePath | None = None,
    release: str | None = None,
    trusted: Trusted = (),
    force: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
    note: Callable[[str], object] = ignore,
) -> PackResult:
    """Pack a GGUF into one verified archive that restores bit for bit.

    A derivation beside it (NAME.intoto.json) goes in too, where it speaks of this file.

    Args:
        file: the GGUF.
        output: the archive; by default beside it, as `.edgepack`. `-` is standard output.
        level: zstd level, 1 to 19.
        dictionary: train dictionaries where they gain.
        include: other files to put in, under their own names.
        projector: a GGUF of what sees, that `run` and `serve` use with the model.
        base: an older archive, to take chunks and dictionaries from.
        release: the model's version, such as `1.2`, so that devices tell an older one.
        trusted: files of public keys, one of which must have signed the base (by default: of the trust store), or a
            policy.
        force: replace an archive that is there already; never an input.
        threads: workers; None for one a core.
        progress: told of bytes read.
        note: told of a derivation beside the file that stays out, and of bytes that belong to no tensor.

    Raises:
        GGUFError: `file` is not a whole GGUF.
        UsageError: a file is not there, a name occurs twice, the output cannot be written or is there already, or a
            projector is none or was made for another model.
        AdapterError: an adapter among them was made for another model.
        ResourceError: the disk is full.
    """
    file, included, older = Path(file), paths(include), optional_path(base)
    target = file.with_suffix(".edgepack") if output is None else Path(output)
    every = (*included, *([] if projector is None else paths([projector])), *_derivation(file, included, note))
    inputs = [file, *every, *([] if older is None else [older])]
    with nullcontext() if target == STANDARD_STREAM else claimed_output(target, inputs=inputs, force=force):
        if file.is_file() and (left := read_header(file).trailing_bytes):
            note(f"{file}: {left} bytes behind the last tensor belong to none; they are packed as they are")
        _check_projectors(file, included, optional_path(projector))
        _check_adapters(file, included)
        return pack_archive(
            file, target, level=level, dictionary=dictionary, include=every, base=older, release=release,
            trust=policy_for(trusted), threads=threads, progress=progress,
        )  # fmt: skip


def _derivation(file: Path, included: Sequence[Path], note: Callable[[str], object]) -> tuple[Path, ...]:
    """What says where the file comes from, and lies beside it."""
    from edgepack.packaging.derivation import SUFFIX, beside_path, neighbour_of

    if any(path.name.endswith(SUFFIX) for path in included):
        return ()
    said, why = neighbour_of(file)
    if why:
        note(f"{beside_path(file).name} lies beside it and stays out: {why}")
    return () if said is None else (beside_path(file),)


def _check_projectors(model: Path, included: Sequence[Path], given: Path | None) -> None:
    """Refuse what sees for another model, whichever option brings it."""
    eyes = [path for path in included if is_gguf(path) and is_projector(read_header(path))]
    for path in (*eyes, *([] if given is None else [given])):
        check_projector(path, read_header(model))


def _check_adapters(model: Path, included: Sequence[Path]) -> None:
    """Refuse an adapter of another model: `run` would refuse the whole archive."""
    lora = [path for path in included if is_gguf(path) and read_header(path).get(keys.TYPE) == "adapter"]
    if not lora or is_variant(read_header(model)):  # an adapter of the variant fits the file that it is decoded to
        return
    for path in lora:
        check_adapter(path, read_header(model), model)


def estimate_pack(file: FilePath, *, include: Sequence[FilePath] = (), level: int = DEFAULT_LEVEL) -> Estimate:
    """How large `pack` would make its archive, from a sample of chunks; writes nothing.

    Args:
        file: the GGUF.
        include: other files that would be put in.
        level: zstd level, 1 to 19.

    Raises:
        GGUFError: `file` is not a whole GGUF.
        UsageError: a file is not there.
    """
    return estimate_archive(Path(file), paths(include), level)


def unpack(
    archive: FilePath | BinaryIO,
    output: FilePath | None = None,
    *,
    trusted: Trusted = (),
    force: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
) -> UnpackResult:
    """Restore the GGUF of an archive, verified while it is written; continues an interrupted run.

    Adapters and other GGUFs that the archive brings are restored beside it, under the output's name where they had
    the model's: a model without its adapter would answer as another one. A stream gives the model alone.

    Args:
        archive: the `.edgepack`, or a binary stream that brings one (read once, in order).
        output: the file to write, which appears only when it is whole; by default the member's own name beside the
            archive (for a stream, in the working folder), if no such file exists.
        trusted: files of public keys, one of which must have signed (by default: of the trust store), or a policy.
        force: replace files that are there already; never the archive.
        threads: workers; None for one a core.
        progress: told of bytes restored.

    Raises:
        ArchiveError: the archive is truncated, hostile or newer.
        IntegrityError: bytes differ from their digest; no output appears.
        CheckFailedError: nobody trusted signed.
        UsageError: a key or the output cannot be used.
        ResourceError: the disk is too small or became full.
    """
    trust = policy_for(trusted)
    if not isinstance(archive, (str, os.PathLike)):
        target = Path() if output is None else Path(output)
        return unpack_stream(archive, target, trust=trust, force=force, threads=threads, progress=progress)
    file = Path(archive)
    target = _default_output(file, trust) if output is None else Path(output)
    beside = _beside(file, target, trust)
    with _claimed([target, *(path for _name, path in beside)], file, force):
        result = unpack_archive(file, target, trust=trust, threads=threads, progress=progress)
        return replace(result, beside=_restore_beside(file, beside, trust, threads, progress))


@contextmanager
def _claimed(targets: Sequence[Path], source: Path, force: bool) -> Iterator[None]:
    """Claim several outputs of one archive."""
    with ExitStack() as claims:
        for target in targets:
            claims.enter_context(claimed_output(target, inputs=[source], force=force))
        yield


def _restore_beside(
    file: Path, beside: Sequence[tuple[str, Path]], trust: TrustPolicy, threads: int | None, progress: Progress
) -> tuple[Path, ...]:
    """Restore members of an archive under the paths that go with them; gives where they are."""
    return tuple(
        unpack_archive(file, path, member=member, trust=trust, threads=threads, progress=progress).output
        for member, path in beside
    )


def _beside(file: Path, target: Path, trust: TrustPolicy) -> list[tuple[str, Path]]:
    """The archive's other GGUFs, and where each one goes when the model becomes `target`."""
    with open_archive(file, trust) as archive:
        stem = PurePosixPath(archive.main.name).stem
        others = [member.name for member in archive.beside]
    return [(name, target.with_name(_renamed(PurePosixPath(name).name, stem, target.stem))) for name in others]


def _renamed(name: str, stem: str, new: str) -> str:
    """A name that says which model it belongs to, with the model's new one: `STEM-lora.gguf`, not `mmproj-….gguf`."""
    return f"{new}{name.removeprefix(stem)}" if name.startswith((f"{stem}-", f"{stem}.")) else name


def _default_output(file: Path, trust: TrustPolicy) -> Path:
    """The model's own name beside the archive."""
    with open_archive(file, trust) as archive:
        return file.parent / Path(archive.main.name).name


@dataclass(frozen=True)
class NativeResult:
    """What decoding a file of the variant gave.

    Attributes:
        output: the plain GGUF.
        bytes: its length.
        original_bytes: of the file that was decoded.
        sha256: of the plain GGUF, hexadecimal.
        seconds: wall time.
        coded: how many tensors were decoded.
        tensors: of the plain GGUF, in file order.
        beside: other GGUFs of an archive, restored beside it.
    """

    output: Path
    bytes: int
    original_bytes: int
    sha256: str
    seconds: float
    coded: int
    tensors: tuple[TensorInfo, ...]
    beside: tuple[Path, ...] = ()


def unpack_native(
    file: FilePath,
    output: FilePath | None = None,
    *,
    native_type: str | None = None,
    trusted: Trusted = (),
    force: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
) -> NativeResult:
    """Decode a GGUF of the variant (or the one in an archive) into a plain GGUF that stock llama.cpp runs.

    Args:
        file: a GGUF of the variant, or an `.edgepack` that holds one.
        output: the plain GGUF; by default FILE-native.gguf.
        native_type: what coded tensors become, such as `q6_k`; by default as each one says.
        trusted: files of public keys, one of which must have signed (by default: of the trust store), or a policy.
        force: replace files that are there already; never `file`.
        threads: workers; None for one a core.
        progress: told of bytes.

    Raises:
        UsageError: no such file, or a type that cannot hold weights.
        GGUFError, ArchiveError, IntegrityError: the file is not sound.
        CheckFailedError: nobody trusted signed.
        CodecError: it is not of the variant, or made by a newer edgepack.
    """
    from edgepack.edge.install.native import plan_native, write_native
    from edgepack.file_digest import file_sha256
    from edgepack.quant.types.targets import find_type

    started = time.monotonic()
    file = Path(file)
    target = file.with_name(f"{file.stem}-native.gguf") if output is None else Path(output)
    kind = find_type(native_type) if native_type else None
    trust = policy_for(trusted)
    beside = _beside(file, target, trust) if is_archive(file) else []
    with ExitStack() as opened:
        opened.enter_context(_claimed([target, *(path for _name, path in beside)], file, force))
        plan = plan_native(opened.enter_context(_variant_file(file, target, trust, threads, progress)), kind)
        size = write_native(plan, target, threads=threads, progress=progress)
        restored = _restore_beside(file, beside, trust, threads, progress)
    seconds = time.monotonic() - started
    coded = len(list(plan.variant.coded))
    return NativeResult(target, size, file.stat().st_size, file_sha256(target), seconds, coded, plan.infos, restored)


@contextmanager
def _variant_file(
    file: Path, target: Path, trust: TrustPolicy, threads: int | None, progress: Progress
) -> Iterator[Path]:
    """The GGUF itself, or the one inside an archive, restored beside `target` for as long as it is needed."""
    if not file.is_file():
        raise UsageError(f"'{file}': no such file")
    if not is_archive(file):
        trust.check_plain(file)
        yield file
        return
    with scratch_beside(target) as temporary:
        restored = temporary / "variant.gguf"
        unpack_archive(file, restored, trust=trust, threads=threads, progress=progress)
        yield restored


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
