"""An archive from web servers: index and signatures first, then only the records that are not here yet.

Nothing appears under the final name before every byte was checked; what an interrupted fetch leaves is continued by the
next. How servers are read is left to `download` and `whole_body`, what a signature must be to `packaging.signing`.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.edge.fetch.download import Download
from edgepack.edge.fetch.mirrors import Mirrors, NoMirrorLeftError
from edgepack.edge.fetch.remote import RangesUnsupportedError, open_remote
from edgepack.edge.fetch.reuse import LocalRecords, already_there, copy_equal
from edgepack.edge.fetch.stored_records import known_parts, runs, stored_records
from edgepack.edge.fetch.web import Web, shown
from edgepack.edge.fetch.whole_body import fetch_whole
from edgepack.errors import ArchiveError, IntegrityError, NetworkError
from edgepack.file_digest import stream_sha256
from edgepack.files.output import atomic_output
from edgepack.files.resumable import resumable_output
from edgepack.packaging.archive import Archive, open_archive
from edgepack.packaging.format import sha256
from edgepack.packaging.trust.policy import ANYONE, TrustPolicy
from edgepack.progress import Progress, silent
from edgepack.quantities import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import BinaryIO

    from edgepack.edge.fetch.stored_records import StoredRecord
    from edgepack.packaging.trust.signatures import SignatureState

DEFAULT_CONNECTIONS = 4


@dataclass(frozen=True)
class FetchRequest:
    """What is fetched and how.

    Attributes:
        urls: addresses of one archive, the preferred first.
        output: the file's final name.
        trust: whose archives are taken.
        sha256: of the whole file, hexadecimal; None where the user named none.
        bases: archives on this machine whose equal records need not be fetched.
        connections: requests at once.
        web: how servers are spoken to.
        note: told in lines of what goes otherwise than asked.
        progress: told of bytes received.
    """

    urls: tuple[str, ...]
    output: Path
    trust: TrustPolicy = ANYONE
    sha256: str | None = None
    bases: tuple[Path, ...] = ()
    connections: int = DEFAULT_CONNECTIONS
    web: Web = field(default_factory=Web)
    note: Callable[[str], object] = lambda _text: None
    progress: Progress = silent


@dataclass(frozen=True)
class FetchResult:
    """What a fetch gave.

    Attributes:
        output: the archive.
        bytes: its length.
        received_bytes: how much came over the network for it, index and repetitions included.
        copied_bytes: how much came from archives on this machine.
        kept_bytes: how much an earlier, interrupted fetch had left.
        index_sha256: digest of the index record, which holds those of all others; hexadecimal.
        signature: what the signatures say.
        keys: public keys, hexadecimal, that signed rightly.
        seconds: wall time.
    """

    output: Path
    bytes: int
    received_bytes: int
    copied_bytes: int
    kept_bytes: int
    index_sha256: str
    signature: SignatureState
    keys: tuple[str, ...]
    seconds: float

    def json(self) -> dict[str, object]:
        """The object that `edgepack fetch --json` prints."""
        return {
            "output": str(self.output),
            "bytes": self.bytes,
            "received_bytes": self.received_bytes,
            "copied_bytes": self.copied_bytes,
            "kept_bytes": self.kept_bytes,
            "index_sha256": self.index_sha256,
            "signature": {"state": self.signature.value, "keys": list(self.keys)},
            "seconds": self.seconds,
        }

    def line(self) -> str:
        """The same for people."""
        parts = [f"{format_size(self.received_bytes)} received"]
        parts += [f"{format_size(self.copied_bytes)} were here already"] * bool(self.copied_bytes)
        parts += [f"{format_size(self.kept_bytes)} kept from before"] * bool(self.kept_bytes)
        keys = f" ({', '.join(key[:16] for key in self.keys)})" if self.keys else ""
        return (
            f"{self.output}: {format_size(self.bytes)}, {', '.join(parts)}, every byte checked, "
            f"{self.signature.value}{keys}, in {format_duration(self.seconds)}"
        )


def fetch_archive(request: FetchRequest) -> FetchResult:
    """Fetch an archive; every byte is checked before the file appears under its name.

    Where the server has exchanged the archive meanwhile, the fetch begins again with all that is equal.

    Raises:
        NetworkError: no address gives the archive. What came is kept, and the next fetch goes on there.
        CheckFailedError: it is wrongly signed, or not by a trusted key: found before its body is fetched.
        ArchiveError, IntegrityError: what the server has is no archive, or a damaged one.
        ResourceError: the disk is too small.
    """
    started = time.perf_counter()
    try:
        with open_first(request) as archive:
            try:
                return _fill(request, archive, started)
            except NoMirrorLeftError as error:
                with open_first(request) as now:
                    if _identity(now) == _identity(archive):
                        raise
                    request.note(f"{error}: there is another version now; it is fetched instead")
                    return _fill(request, now, started)
    except RangesUnsupportedError as error:
        request.note(f"{error}: it is read in one go, and again from its beginning if that is cut")
        return _whole(request, error.url, started)


def open_first(request: FetchRequest) -> Archive:
    """The archive at the first address that has one, opened where it lies; its signatures are judged.

    Raises:
        NetworkError, ArchiveError, IntegrityError, CheckFailedError: as `fetch_archive`.
    """
    for url in request.urls[:-1]:
        with _telling(request.note):
            return _open(request, url)
    return _open(request, request.urls[-1])


@contextmanager
def _telling(note: Callable[[str], object]) -> Iterator[None]:
    """What speaks against one address is said, and the next is tried."""
    try:
        yield
    except RangesUnsupportedError:
        raise
    except (NetworkError, ArchiveError, IntegrityError) as error:
        note(f"{error}; trying the next address")


def _open(request: FetchRequest, url: str) -> Archive:
    return open_archive(Path(shown(url)), request.trust, source=open_remote(request.web, url))


def _identity(archive: Archive) -> bytes:
    return sha256(archive.index_record)


def _fill(request: FetchRequest, archive: Archive, started: float) -> FetchResult:
    records, total = list(stored_records(archive)), archive.footer.file_bytes
    bases = [path for path in (request.output, *request.bases) if path.is_file()]
    with resumable_output(request.output, total) as stream, LocalRecords(bases) as local:
        descriptor = stream.fileno()
        kept = already_there(descriptor, records)
        os.ftruncate(descriptor, total)
        missing = [record for record in records if record.offset not in kept]
        missing, copied = copy_equal(local, missing, partial(_write_at, descriptor))
        received = _download(request, missing, total, descriptor)
        known = 0
        for offset, block in known_parts(archive):
            _write_at(descriptor, offset, block)
            known += len(block)
        _check_whole(request, stream)
    kept_bytes = sum(record.n_bytes for record in records if record.offset in kept)
    return _result(request, archive, (received + known, copied, kept_bytes), started)


def _download(request: FetchRequest, missing: Sequence[StoredRecord], total: int, descriptor: int) -> int:
    with request.progress("fetching", sum(record.n_bytes for record in missing)) as advance:
        mirrors = Mirrors(request.urls, request.note)
        download = Download(request.web, mirrors, total, partial(_write_at, descriptor), advance)
        download.fetch(list(runs(missing)), request.connections)
    return download.received


def _write_at(descriptor: int, offset: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _check_whole(request: FetchRequest, stream: BinaryIO) -> None:
    """Hold the finished file against the SHA-256 that the user named."""
    if request.sha256 is None:
        return
    stream.seek(0)
    got = stream_sha256(stream, os.fstat(stream.fileno()).st_size).hex()
    if got != request.sha256.lower():
        raise IntegrityError(f"'{request.output}': expected SHA-256 {request.sha256.lower()}, got {got}")


def _whole(request: FetchRequest, url: str, started: float) -> FetchResult:
    """The fall-back for servers without ranges: the body in one go, then every record of it checked."""
    with atomic_output(request.output) as stream:
        received = fetch_whole(request.web, url, stream, request.output, request.progress)
        stream.flush()
        with open_archive(request.output, request.trust, descriptor=stream.fileno()) as archive:
            for record in stored_records(archive):
                if not record.holds(archive.read_at(record.offset, record.n_bytes)):
                    raise IntegrityError(f"{shown(url)}: {record.where}: SHA-256 differs")
            for offset, block in known_parts(archive):
                if archive.read_at(offset, len(block)) != block:
                    raise IntegrityError(f"{shown(url)}: its {len(block)} bytes at {offset} differ from the index")
            _check_whole(request, stream)
            return _result(request, archive, (received, 0, 0), started)


def _result(request: FetchRequest, archive: Archive, amounts: tuple[int, int, int], started: float) -> FetchResult:
    report = request.trust.judge(archive.index_record, archive.signatures)
    return FetchResult(
        request.output,
        archive.footer.file_bytes,
        *amounts,
        _identity(archive).hex(),
        report.state,
        report.keys,
        time.perf_counter() - started,
    )
