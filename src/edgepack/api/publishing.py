"""`edgepack.release`: everything that a publisher uploads; written by `pipeline.release`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.api.trust import policy_for
from edgepack.api.values import FilePath, optional_path
from edgepack.pipeline.release.folder import ReleaseRequest
from edgepack.pipeline.release.folder import release as write_release
from edgepack.progress import silent

if TYPE_CHECKING:
    from edgepack.api.trust import Trusted
    from edgepack.pipeline.release.folder import Released
    from edgepack.progress import Progress


def release(
    file: FilePath,
    folder: FilePath,
    *,
    gguf: bool = False,
    key: FilePath | None = None,
    openssf_key: FilePath | None = None,
    license_file: FilePath | None = None,
    base_model: str | None = None,
    trusted: Trusted = (),
    progress: Progress = silent,
) -> Released:
    """Write a folder with the archive, its model card, plots, adapters, configuration, sums and signatures.

    Tables and plots of the card come from the archive's certificate, its origin from the derivation.

    Args:
        file: the `.edgepack`.
        folder: must not be there, or be empty; it appears whole or not at all.
        gguf: put the plain GGUF in too.
        key: a private key that signs the archive and the sums.
        openssf_key: a private key on P-256 that signs the folder in OpenSSF's model-signing format, into `model.sig`.
        license_file: the licence's text; by default the archive's own.
        base_model: the original's repository on the hub, where the archive does not say it.
        trusted: files of public keys, one of which must have signed (by default: of the trust store), or a policy.
        progress: told of bytes.

    Raises:
        UsageError: the folder is in the way, or a file cannot be read.
        CheckFailedError: the archive is damaged or wrongly signed.
    """
    request = ReleaseRequest(
        Path(file), Path(folder), gguf, optional_path(key), optional_path(license_file), base_model,
        policy_for(trusted), optional_path(openssf_key),
    )  # fmt: skip
    return write_release(request, progress)
