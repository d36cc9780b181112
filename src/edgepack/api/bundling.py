"""`edgepack.bundle`: an archive and all that runs it in one folder; `edge.bundle` works."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.api.trust import Trusted, policy_for
from edgepack.api.values import FilePath, optional_path
from edgepack.edge.bundle.folder import BundleResult, make_bundle
from edgepack.edge.bundle.wheels import this_platform, this_python
from edgepack.edge.fetch.offline import require_online
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.progress import Progress


def bundle(
    file: FilePath,
    output: FilePath | None = None,
    *,
    platform: str | None = None,
    pythons: Sequence[str] = (),
    wheels: FilePath | None = None,
    trusted: Trusted = (),
    offline: bool = False,
    progress: Progress = silent,
) -> BundleResult:
    """Make a folder for a stick: the archive, wheels for a platform, scripts that install once and run.

    pip fetches the wheels, from the index that it is configured for, unless `wheels` has them.

    Args:
        file: the archive; every byte is checked.
        output: the folder, which must not be there; by default the archive's name with `-bundle`.
        platform: the other machine, such as `windows-x86_64`; by default one like this.
        pythons: versions of Python that it may have; by default that of this one.
        wheels: a folder that has all wheels: then nothing is fetched.
        trusted: files of public keys, one of which must have signed (by default: of the trust store), or a policy.
        offline: forbid connections, as EDGEPACK_OFFLINE=1 does; `wheels` is needed then.
        progress: told of bytes checked.

    Raises:
        UsageError: the folder is there, the platform is unknown, or connections are forbidden and no wheels are given.
        IntegrityError: the archive is damaged.
        CheckFailedError: nobody trusted signed it.
        NetworkError: there is no wheel of something for that platform and Python.
    """
    if wheels is None:
        require_online("bundle without --wheels", offline=offline)
    archive = Path(file)
    target = archive.with_name(f"{archive.stem}-bundle") if output is None else Path(output)
    return make_bundle(
        archive, target, platform=platform or this_platform(), pythons=tuple(pythons) or (this_python(),),
        wheels=optional_path(wheels), trust=policy_for(trusted), progress=progress,
    )  # fmt: skip
