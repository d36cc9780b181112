"""The next version of an archive that is here: asked for where it came from, only what differs is fetched.

Who signed the version at hand must have signed the next one too. Fetching is left to `archive_fetch`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgepack.edge.fetch.archive_fetch import FetchRequest, FetchResult, fetch_archive, open_first
from edgepack.edge.fetch.changes import Changes, changes
from edgepack.edge.fetch.fetched_from import recall
from edgepack.edge.fetch.remote import RangesUnsupportedError
from edgepack.edge.fetch.stored_records import stored_records
from edgepack.errors import UsageError
from edgepack.packaging.archive import open_archive
from edgepack.packaging.format import sha256
from edgepack.packaging.trust.policy import ANYONE, TrustPolicy
from edgepack.packaging.trust.store import TrustedKey

if TYPE_CHECKING:
    from edgepack.packaging.archive import Archive


@dataclass(frozen=True)
class UpdateResult:
    """What an update found or did.

    Attributes:
        differs: whether the server has another version.
        changes: from the version at hand to the server's; none where only signatures or compression differ.
        missing_bytes: how much of the server's version is not here.
        fetched: what fetching gave; None where nothing was fetched.
        urls: the addresses that were asked.
    """

    differs: bool
    changes: Changes
    missing_bytes: int
    fetched: FetchResult | None
    urls: tuple[str, ...]

    def json(self) -> dict[str, object]:
        """The object that `edgepack update --json` prints."""
        return {
            "differs": self.differs,
            "files": self.changes.members,
            "metadata": self.changes.metadata,
            "tensors": self.changes.tensors,
            "missing_bytes": self.missing_bytes,
            "fetched": None if self.fetched is None else self.fetched.json(),
        }


def update_archive(request: FetchRequest, *, check_only: bool = False) -> UpdateResult:
    """Replace the archive at `request.output` by the version that the server has now.

    Args:
        request: with no `urls`, those that the archive was fetched from; with a `trust` that names no keys, those that
            signed the archive at hand.
        check_only: tell what differs, fetch nothing but the index and headers.

    Raises:
        UsageError: nobody knows where the archive came from.
        CheckFailedError: the next version lacks the signature that this one has.
        NetworkError, ArchiveError, IntegrityError: as `fetch_archive`.
    """
    with open_archive(request.output, ANYONE) as old:
        request = _completed(request, old)
        try:
            new = open_first(request)
        except RangesUnsupportedError:
            raise UsageError(f"'{request.output}': its server knows no ranges: use fetch --force") from None
        with new:
            if sha256(old.index_record) == sha256(new.index_record) and old.signatures == new.signatures:
                return UpdateResult(False, Changes({}, {}, {}), 0, None, request.urls)
            found, missing = changes(old, new), _missing_bytes(old, new)
    return UpdateResult(True, found, missing, None if check_only else fetch_archive(request), request.urls)


def _completed(request: FetchRequest, old: Archive) -> FetchRequest:
    urls = request.urls or recall(sha256(old.index_record).hex())
    if not urls:
        raise UsageError(f"'{request.output}': it was not fetched on this machine; say where it is with --from URL")
    return replace(request, urls=urls, trust=request.trust if request.trust.keys else _trust_of(old))


def _trust_of(old: Archive) -> TrustPolicy:
    """The keys that signed the archive at hand, which was judged when it was opened; anyone where nobody did."""
    keys = ANYONE.judge(old.index_record, old.signatures).keys
    named = tuple(TrustedKey(key, old.path.name) for key in keys)
    return TrustPolicy(named, f"those that signed '{old.path}'") if named else ANYONE


def _missing_bytes(old: Archive, new: Archive) -> int:
    here = {(record.digest, record.n_bytes) for record in stored_records(old)}
    return sum(record.n_bytes for record in stored_records(new) if (record.digest, record.n_bytes) not in here)
