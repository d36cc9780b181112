"""Connections of clients: a deadline for the head of each request, and a bound on how many there are.

uvicorn has neither: whoever opens a connection and says nothing would keep it, and with enough of them keep everybody
else out.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

HEAD_SECONDS = 10.0
MOST_CONNECTIONS = 512
_SPARE_FILES = 128  # for everything that is no connection of a client


class PatientProtocol(H11Protocol):
    """uvicorn's connection, which is closed when the head of a request does not come within `HEAD_SECONDS`.

    When there are more than `most` connections, the oldest of those that wait for a head makes room.
    """

    most = MOST_CONNECTIONS

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self.most:
            for oldest in list(_waiting_of(self))[:1]:
                oldest._close()  # noqa: SLF001 - another of this class

    def data_received(self, data: bytes) -> None:
        """Bytes have come; once they hold a whole head, the deadline is off."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_waiting()
        elif self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._wait()  # the beginning of another head, on a connection that was kept

    def on_response_complete(self) -> None:
        """An answer is out: uvicorn's own deadline for a connection that is kept begins."""
        super().on_response_complete()
        if not self.transport.is_closing():
            _waiting_of(self)[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        _waiting_of(self)[self] = None
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._close)

    def _stop_waiting(self) -> None:
        _waiting_of(self).pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        self._stop_waiting()
        self.transport.abort()


def _waiting_of(protocol: PatientProtocol) -> dict[PatientProtocol, None]:
    """Connections of the same server that wait for a head, the oldest first."""
    state = protocol.app_state
    waiting: dict[PatientProtocol, None] = state.setdefault("waiting_connections", {})
    return waiting


def allow_many_files() -> int:
    """Raise this process's limit of open files as far as it goes; how many connections then are safe."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MOST_CONNECTIONS + _SPARE_FILES
        if soft != resource.RLIM_INFINITY and soft < wanted:
            soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            return max(16, soft - _SPARE_FILES)
    return MOST_CONNECTIONS
