"""Whom a command trusts, and the one place where an archive is refused for who signed it, or who did not.

Every path that consumes an archive opens it with a policy (`archive.open_archive`); a wrongly signed one is refused
under every policy. Where signatures stand is left to `records`, what each of them says to `signatures`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime, timezone
from typing import TYPE_CHECKING

from edgepack.errors import CheckFailedError, IntegrityError, UsageError
from edgepack.packaging.trust.signatures import SignatureReport, SignatureState, judge_record, load_public_key
from edgepack.packaging.trust.store import TrustedKey, read_store, store_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True)
class TrustPolicy:
    """Whom to trust.

    Attributes:
        keys: one of them must have signed; none to take archives of anybody, unsigned ones too.
        source: says where the keys come from, for messages.
        only_signed: files that cannot carry a signature (a plain GGUF) are refused too: so where the user named keys
            for this very command.
    """

    keys: tuple[TrustedKey, ...] = ()
    source: str = ""
    only_signed: bool = False

    def judge(self, index_record: bytes, signatures: Sequence[tuple[bytes, bytes]]) -> SignatureReport:
        """What the signatures of an index record say under this policy; expired and revoked keys do not count."""
        valid = [key.raw for key in self.keys if not key.reason_against(today())]
        return judge_record(index_record, signatures, valid, asked=bool(self.keys))

    def refusal(self, report: SignatureReport) -> str | None:
        """Why an archive with these signatures is not taken, or None."""
        if report.state is SignatureState.INVALID:
            return f"the archive is {report.state.value}"
        if self.keys and report.state is not SignatureState.TRUSTED:
            reasons = [why for key in self.keys if key.key in report.keys and (why := key.reason_against(today()))]
            because = f" ({'; '.join(reasons)})" if reasons else ""
            return f"the archive is {report.state.value}{because}, expected a signature by a key of {self.source}"
        return None

    def check(self, index_record: bytes, signatures: Sequence[tuple[bytes, bytes]]) -> SignatureReport:
        """Judge the signatures of an index record whose own digest was checked.

        Raises:
            IntegrityError: a signature is wrong.
            CheckFailedError: nobody trusted signed.
        """
        report = self.judge(index_record, signatures)
        if (complaint := self.refusal(report)) is not None:
            wrong = report.state is SignatureState.INVALID
            raise IntegrityError(complaint) if wrong else CheckFailedError(complaint)
        return report

    def of_originals(self) -> TrustPolicy:
        """The same for a reference: an archive must be signed, but a plain GGUF may be what others are held against."""
        return replace(self, only_signed=False)

    def check_plain(self, path: Path) -> None:
        """Refuse a file that cannot be signed where the user named keys.

        Raises:
            CheckFailedError: `only_signed` holds.
        """
        if self.only_signed:
            raise CheckFailedError(f"'{path}': a GGUF cannot be signed, expected an archive signed by {self.source}")


def today() -> date:
    """The day on which keys are judged, UTC."""
    return datetime.now(timezone.utc).date()


ANYONE = TrustPolicy()  # wrongly signed archives are refused even so


def machine_policy() -> TrustPolicy:
    """The policy of the user's trust store: its keys, or anybody where it is empty or absent.

    Raises:
        UsageError: the store cannot be understood.
    """
    keys = read_store()
    return TrustPolicy(keys, f"the trust store '{store_path()}'") if keys else ANYONE


def policy_of(files: Sequence[Path]) -> TrustPolicy:
    """The policy that trusts the public keys in PEM files and nobody else; the machine's where none are named.

    Raises:
        UsageError: a file is no public key.
    """
    if not files:
        return machine_policy()
    keys = tuple(TrustedKey(load_public_key(path).hex(), path.name) for path in files)
    return TrustPolicy(keys, f"--trusted {', '.join(str(path) for path in files)}", only_signed=True)


def chosen_policy(files: Sequence[Path], *, anyone: bool) -> TrustPolicy:
    """The policy of a command line: `--trusted` and `--allow-untrusted`.

    Raises:
        UsageError: both were given, or a file is no public key.
    """
    if anyone and files:
        raise UsageError("--allow-untrusted: expected it without --trusted")
    return ANYONE if anyone else policy_of(files)
