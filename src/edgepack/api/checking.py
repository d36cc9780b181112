"""`edgepack.verify`, `inspect`, `sign`: what a file is and who vouches for it. Making files is left to `archives`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.api.stated import stated
from edgepack.api.trust import Trusted, policy_for
from edgepack.api.values import FilePath, JsonObject, optional_path
from edgepack.errors import EdgepackError
from edgepack.gguf.reader import read_header
from edgepack.packaging import signing
from edgepack.packaging.archive import open_unjudged
from edgepack.packaging.inspection import Inspection, inspect_archive
from edgepack.packaging.plain_gguf import inspect_gguf, is_gguf, verify_gguf
from edgepack.packaging.trust.releases import rollback
from edgepack.packaging.trust.signatures import SignatureState
from edgepack.packaging.verify import Problem, verify_archive
from edgepack.progress import silent

if TYPE_CHECKING:
    from edgepack.packaging.trust.signatures import SignatureReport
    from edgepack.progress import Progress


@dataclass(frozen=True)
class VerifyResult:
    """What checking a file found.

    Attributes:
        problems: every one that was found; none for a sound file.
        signature: who signed; None for a GGUF, and for an archive whose structure is broken.
        rollback: a sentence where the archive is older than one that this machine has taken before; empty else.
    """

    problems: tuple[Problem, ...]
    signature: SignatureReport | None
    rollback: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def json(self) -> JsonObject:
        """The object that `edgepack verify --json` prints."""
        signed = self.signature
        return {
            "ok": self.ok,
            "problems": [{"where": problem.where, "what": problem.what} for problem in self.problems],
            "rollback": self.rollback,
            "signature": None if signed is None else {"state": signed.state.value, "keys": list(signed.keys)},
        }


def verify(file: FilePath, *, deep: bool = False, trusted: Trusted = (), progress: Progress = silent) -> VerifyResult:
    """Check every byte of an archive against its digests; of a GGUF, which carries none, the structure.

    What is wrong with the file is returned, not raised.

    Args:
        file: an `.edgepack` or a GGUF.
        deep: restore everything in memory too, and check chunks, tensors and files.
        trusted: files of public keys, one of which must have signed (by default: of the trust store), or a policy.
        progress: told of bytes checked.

    Raises:
        UsageError: a key cannot be read.
    """
    file, trust = Path(file), policy_for(trusted)
    if is_gguf(file):
        unsigned = [Problem("signature", "a GGUF cannot be signed; pack it first")] if trust.only_signed else []
        return VerifyResult((*verify_gguf(file), *unsigned), None)
    problems = list(verify_archive(file, deep=deep, progress=progress))
    if any(problem.where == "structure" for problem in problems):
        return VerifyResult(tuple(problems), None)
    with open_unjudged(file) as archive:
        report = trust.judge(archive.index_record, archive.signatures)
        older = rollback(archive, trust) or ""
    if complaint := trust.refusal(report):
        problems.append(Problem("signature", f"{complaint}{key_list(report)}"))
    return VerifyResult(tuple(problems), report, older)


def key_list(report: SignatureReport) -> str:
    """The keys whose signatures are right, in brackets; empty for none."""
    return f" (ed25519 {', '.join(report.keys)})" if report.keys else ""


def inspect(file: FilePath, *, tensors: bool = False, progress: Progress = silent) -> Inspection:
    """What an archive or a GGUF holds, and what each kind of stream gained; of an archive the index suffices.

    Args:
        file: an `.edgepack` or a GGUF.
        tensors: list the tensors of the model too.
        progress: told of bytes digested (a GGUF's).

    Raises:
        ArchiveError, IntegrityError, GGUFError: the file is not sound.
    """
    file = Path(file)
    if is_gguf(file):
        found = inspect_gguf(file, tensors=tensors, progress=progress)
        return replace(found, stated=stated(read_header(file)))
    with open_unjudged(file) as archive:
        found = inspect_archive(archive, tensors=tensors)
        if found.archive is None or found.archive.signature == SignatureState.INVALID.value:
            return found
        try:
            return replace(found, stated=stated(archive.gguf_header()))
        except EdgepackError:  # `verify` says what is wrong with it
            return found


@dataclass(frozen=True)
class Signed:
    """What signing gave: the signed archive, and the public key in hexadecimal."""

    output: Path
    key: str


def sign(file: FilePath, key: FilePath, output: FilePath | None = None, *, force: bool = False) -> Signed:
    """Add a signature to an archive; one of the same key is replaced.

    Args:
        file: the `.edgepack`.
        key: the private key that `generate_key` made.
        output: the signed archive; in place by default.
        force: replace another file that is there already; never an input.

    Raises:
        ArchiveError, IntegrityError: the archive cannot be opened.
        UsageError: the key cannot be read, or there are too many signatures.
    """
    target = optional_path(output)
    public = signing.sign_archive(Path(file), Path(key), target, force=force)
    return Signed(target or Path(file), public)


@dataclass(frozen=True)
class KeyPair:
    """A new key: the file of the private half, the file of the public half, the public key in hexadecimal."""

    private: Path
    public: Path
    key: str


def generate_key(key: FilePath) -> KeyPair:
    """Make an Ed25519 key: the private half in the file `key`, the public half beside it in KEY.pub.

    Raises:
        UsageError: either file is there already; keys are never overwritten.
    """
    private = Path(key)
    public = signing.generate_key(private)
    return KeyPair(private, signing.public_path(private), public)
