"""`edgepack.unpack` and `edgepack.unpack_native`: archives restored, and files of the variant decoded."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from edgepack.api.trust import Trusted, policy_for
from edgepack.errors import UsageError
from edgepack.files.claim import claimed_output
from edgepack.files.folders import scratch_beside
from edgepack.packaging.archive import is_archive, open_archive
from edgepack.packaging.restore.stream import unpack_stream
from edgepack.packaging.restore.unpack import UnpackResult, unpack_archive
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgepack.api.values import FilePath
    from edgepack.gguf.types import TensorInfo
    from edgepack.packaging.trust.policy import TrustPolicy
    from edgepack.progress import Progress


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
