"""Missing records from servers, over several connections: each checked as it comes, each asked for once.

A connection that is cut goes on at the byte where it was cut, on the same address or on the next. Where bytes are
kept is the caller's; which addresses are asked is `mirrors`'.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgepack.edge.fetch.patience import Patience
from edgepack.edge.fetch.web import shown
from edgepack.errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edgepack.edge.fetch.mirrors import Mirrors
    from edgepack.edge.fetch.stored_records import StoredRecord
    from edgepack.edge.fetch.web import Response, Web

_BLOCK_BYTES = 1 << 16
_JOIN_SECONDS = 0.2


@dataclass
class _Shared:
    """What the connections of a download have in common."""

    web: Web
    mirrors: Mirrors
    total: int
    write: Callable[[int, bytes], object]
    advance: Callable[[int], object]
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    received: int = 0
    error: BaseException | None = None

    def arrived(self, n_bytes: int) -> None:
        """Count bytes that came."""
        with self.lock:
            self.received += n_bytes
            self.advance(n_bytes)

    def keep(self, offset: int, content: bytes) -> None:
        """Write a record, unless the download has ended: its file may be closed by now."""
        with self.lock:
            if not self.stop.is_set():
                self.write(offset, content)


class Download:
    """One download.

    Args:
        web: how servers are spoken to.
        mirrors: the addresses.
        total: bytes of the whole file; a server with another one is not asked again.
        write: takes (offset, bytes) of each record that is right; called from several threads, one at a time.
        advance: told of bytes received, in the same way.
    """

    def __init__(
        self,
        web: Web,
        mirrors: Mirrors,
        total: int,
        write: Callable[[int, bytes], object],
        advance: Callable[[int], object],
    ) -> None:
        self._shared = _Shared(web, mirrors, total, write, advance)
        self._runs: deque[list[StoredRecord]] = deque()

    @property
    def received(self) -> int:
        """Bytes that came, wrong and repeated ones too."""
        return self._shared.received

    def fetch(self, runs: Sequence[list[StoredRecord]], connections: int) -> None:
        """Fetch all records of `runs`.

        Raises:
            NetworkError: no address gives them. What came before is written.
        """
        self._runs.extend(runs)
        workers = [
            threading.Thread(target=self._work, args=(number,), daemon=True)
            for number in range(max(1, min(connections, len(runs))))
        ]
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                while worker.is_alive():
                    worker.join(_JOIN_SECONDS)  # short, so that Ctrl-C is heard
        finally:
            with self._shared.lock:  # nothing is written behind this line
                self._shared.stop.set()
        if self._shared.error is not None:
            raise self._shared.error

    def _work(self, number: int) -> None:
        try:
            while self._runs and not self._shared.stop.is_set():
                with contextlib.suppress(IndexError):  # another connection took the last one
                    _Run(self._shared, number, self._runs.popleft()).fetch()
        except (NetworkError, OSError) as error:
            self._shared.error = self._shared.error or error
            self._shared.stop.set()


class _Run:
    """Neighbouring records under way: what has come of the next one is kept over cuts."""

    def __init__(self, shared: _Shared, number: int, records: list[StoredRecord]) -> None:
        self._all, self._number = shared, number
        self._pending = deque(records)
        self._stop = records[-1].offset + records[-1].n_bytes
        self._buffer = bytearray()
        self._patience = Patience(shared.stop.wait)

    def fetch(self) -> None:
        """Until every record is written.

        Raises:
            NetworkError: no address is left.
        """
        while self._pending and not self._all.stop.is_set():
            url = self._all.mirrors.choose(self._number)
            start = self._pending[0].offset + len(self._buffer)
            with (
                self._dropping(url),
                self._patience.over_cuts(),
                self._all.web.get(url, start, self._stop) as response,
            ):
                self._read(url, response)

    @contextlib.contextmanager
    def _dropping(self, url: str) -> Iterator[None]:
        """What cannot be waited over ends this address, not the run."""
        try:
            yield
        except NetworkError as error:
            self._all.mirrors.drop(url, str(error))

    def _read(self, url: str, response: Response) -> None:
        if response.extent.stop is None or response.extent.total != self._all.total:
            raise NetworkError(
                f"{shown(url)}: expected a file of {self._all.total} bytes by ranges, got {response.extent.total}"
            )
        while self._pending and not self._all.stop.is_set():
            block = response.read(_BLOCK_BYTES)
            self._patience.progress()
            self._buffer += block
            self._all.arrived(len(block))
            if not self._keep():
                self._all.mirrors.wrong(url, self._pending[0].where)
                return

    def _keep(self) -> bool:
        """Write the records that are whole; False where one is wrong, which is forgotten."""
        while self._pending and len(self._buffer) >= self._pending[0].n_bytes:
            record = self._pending[0]
            content = bytes(self._buffer[: record.n_bytes])
            if not record.holds(content):
                self._buffer.clear()
                return False
            self._all.keep(record.offset, content)
            del self._buffer[: record.n_bytes]
            self._pending.popleft()
        return True
