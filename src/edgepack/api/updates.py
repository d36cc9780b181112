"""`edgepack.diff` and `edgepack.patch`: small updates of files; the work is `packaging.delta`'s."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.api.trust import Trusted, policy_for
from edgepack.api.values import FilePath, optional_path
from edgepack.files.claim import claimed_output
from edgepack.packaging.coding.streams import DEFAULT_LEVEL
from edgepack.packaging.delta.diff import DiffResult, diff_files
from edgepack.packaging.delta.patch import PatchResult, apply_patch
from edgepack.progress import silent

if TYPE_CHECKING:
    from edgepack.progress import Progress


def diff(
    old: FilePath,
    new: FilePath,
    output: FilePath | None = None,
    *,
    level: int = DEFAULT_LEVEL,
    trusted: Trusted = (),
    force: bool = False,
    progress: Progress = silent,
) -> DiffResult:
    """Write a patch that makes `new` from `old`, bit for bit; both are archives, or GGUFs, or any files.

    Args:
        old: the file that devices have.
        new: the file that they shall have.
        output: the patch; by default NEW.edgepatch.
        level: zstd level, 1 to 19.
        trusted: files of public keys, one of which must have signed (by default: of the trust store), or a policy.
        force: replace a patch that is there already; never an input.
        progress: told of bytes.

    Raises:
        UsageError: a file is not there, or the output folder is absent.
        CheckFailedError: an archive that nobody trusted signed.
    """
    new = Path(new)
    target = new.with_name(f"{new.name}.edgepatch") if output is None else Path(output)
    with claimed_output(target, inputs=[Path(old), new], force=force):
        return diff_files(Path(old), new, target, level=level, trust=policy_for(trusted), progress=progress)


def patch(
    old: FilePath,
    patch: FilePath,
    output: FilePath | None = None,
    *,
    trusted: Trusted = (),
    force: bool = False,
    progress: Progress = silent,
) -> PatchResult:
    """Make the new file from `old` and a patch, bit for bit and verified.

    Args:
        old: the file that the patch was made for.
        patch: what `diff` wrote.
        output: the new file; by default its own name beside `old`.
        trusted: files of public keys, one of which must have signed the old and the new archive (by default: of the
            trust store), or a policy.
        force: replace a file that is there already; never an input.
        progress: told of bytes.

    Raises:
        ArchiveError: the patch is truncated or hostile.
        CheckFailedError: nobody trusted signed.
        IntegrityError: `old` is another file, or bytes differ from their digest.
    """
    trust, target = policy_for(trusted), optional_path(output)
    return apply_patch(Path(old), Path(patch), target, trust=trust, force=force, progress=progress)
