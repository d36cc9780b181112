"""`edgepack.provenance`, `check_provenance`, `reproduce`: where a file comes from, and proof by making it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.api.trust import policy_for
from edgepack.api.values import FilePath, optional_path
from edgepack.packaging.derivation import read_derivation
from edgepack.pipeline.located import opened_place
from edgepack.pipeline.rederive import Inputs, rederive
from edgepack.progress import silent

if TYPE_CHECKING:
    from edgepack.api.trust import Trusted
    from edgepack.packaging.derivation import Derivation
    from edgepack.pipeline.rederive import DerivationCheck
    from edgepack.progress import Progress


def provenance(file: FilePath, *, trusted: Trusted = ()) -> Derivation:
    """How a file was made: its derivation, which an export puts into every archive.

    Args:
        file: an `.edgepack`, or a GGUF with NAME.intoto.json beside it.
        trusted: files of public keys, one of which must have signed (by default: of the trust store), or a policy.

    Raises:
        UsageError: no such file, or it has no derivation.
        ArchiveError, IntegrityError: the file is not sound.
        CheckFailedError: nobody trusted signed it.
    """
    return read_derivation(Path(file), policy_for(trusted))


def check_provenance(
    file: FilePath,
    model: FilePath,
    *,
    calibration: FilePath | None = None,
    imatrix: FilePath | None = None,
    adapter: FilePath | None = None,
    text: FilePath | None = None,
    factors: FilePath | None = None,
    trusted: Trusted = (),
    threads: int | None = None,
    progress: Progress = silent,
) -> DerivationCheck:
    """Make a file again from a second copy of its sources and compare: the same bytes, or what differs.

    Args:
        file: an `.edgepack`, or a GGUF with NAME.intoto.json beside it.
        model: what it was made from: a Hugging Face folder, a URL of one as text, or a GGUF.
        calibration: the text, where the derivation names one.
        imatrix: the importance matrix, likewise.
        adapter: the PEFT folder, likewise.
        text: what a wire's gate was judged on, likewise.
        factors: low-rank factors that were read, likewise.
        trusted: as in `provenance`.
        threads: workers; None for one a core.
        progress: told of every stretch of work.

    Raises:
        UsageError: no derivation, or an input that it names is missing.
        EdgepackError: whatever the export finds wrong.
    """
    inputs = Inputs(*map(optional_path, (calibration, imatrix, adapter, text, factors)))
    with opened_place(model, None) as (place, located):
        return rederive(Path(file), place, inputs, policy_for(trusted), threads, progress, located=located)


def reproduce(
    file: FilePath,
    model: FilePath,
    *,
    calibration: FilePath | None = None,
    imatrix: FilePath | None = None,
    adapter: FilePath | None = None,
    text: FilePath | None = None,
    factors: FilePath | None = None,
    trusted: Trusted = (),
    threads: int | None = None,
    progress: Progress = silent,
) -> DerivationCheck:
    """Make a file again as a second person would: first every input by its digest, then, if all are right, the bytes.

    Unlike `check_provenance` it makes nothing of an input that is another one: what came out would tell nothing.

    Args:
        file: an `.edgepack`, or a GGUF with NAME.intoto.json beside it.
        model: what it was made from: a Hugging Face folder, a URL of one as text, or a GGUF.
        calibration: the text, where the derivation names one.
        imatrix: the importance matrix, likewise.
        adapter: the PEFT folder, likewise.
        text: what a wire's gate was judged on, likewise.
        factors: low-rank factors that were read, likewise.
        trusted: as in `provenance`.
        threads: workers; None for one a core.
        progress: told of every stretch of work.

    Returns:
        `same` where the bytes are equal (a certificate that was added afterwards aside), else `first_difference`.

    Raises:
        UsageError: no derivation, an input that it names is missing, or there is no such model.
        EdgepackError: whatever the export finds wrong.
    """
    inputs = Inputs(*map(optional_path, (calibration, imatrix, adapter, text, factors)))
    policy = policy_for(trusted)
    with opened_place(model, None) as (place, located):
        return rederive(Path(file), place, inputs, policy, threads, progress, despite_sources=False, located=located)
