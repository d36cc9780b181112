"""`edgepack.pack` and what it would take; `unpacking` restores archives, `checking` checks, `updates` patches them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.api.opening import ignore
from edgepack.api.trust import Trusted, policy_for
from edgepack.api.values import FilePath, optional_path, paths
from edgepack.edge.llama.check import check_adapter
from edgepack.edge.llama.check_projector import check_projector, is_projector
from edgepack.files.claim import claimed_output
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.gguf.variant import is_variant
from edgepack.packaging.coding.streams import DEFAULT_LEVEL
from edgepack.packaging.estimate import Estimate, estimate_archive
from edgepack.packaging.pack import STANDARD_STREAM, PackResult, pack_archive
from edgepack.packaging.plain_gguf import is_gguf
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
