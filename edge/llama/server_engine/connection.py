"""A private HTTP connection to the engine in this process: JSON in, JSON or a stream of events out.

It knows no route. Where the system has Unix sockets no port is opened; elsewhere a loopback port with a key.
"""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import tempfile
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.errors import ModelRuntimeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from edgepack.edge.llama.interrupt import AbortFlag

_LONGEST_SOCKET_PATH = 100  # sun_path holds 104 bytes on macOS, 108 on Linux
_LOOPBACK = "127.0.0.1"


@dataclass
class Endpoint:
    """Where one engine listens, and for whom; `close` removes what lies on disk."""

    key: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    port: int = 0
    _folder: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def private(cls) -> Endpoint:
        """An endpoint that nobody else reaches: a socket in a folder of this user's, else a loopback port."""
        if not hasattr(socket, "AF_UNIX"):
            return cls()
        folder = tempfile.TemporaryDirectory(prefix="edgepack-", ignore_cleanup_errors=True)
        if len(folder.name) + len("/e.sock") > _LONGEST_SOCKET_PATH:
            folder.cleanup()
            return cls()
        return cls(_folder=folder)

    @property
    def address(self) -> str:
        """What the engine is told to listen on."""
        return _LOOPBACK if self._folder is None else str(Path(self._folder.name) / "e.sock")

    def found_at(self, listening: str) -> None:
        """Note the port out of the engine's own `listening_address`."""
        tail = listening.rpartition(":")[2]
        self.port = int(tail) if tail.isdigit() else 0

    def close(self) -> None:
        """Remove the socket; a second call does nothing."""
        if self._folder is not None:
            self._folder.cleanup()

    def connect(self) -> http.client.HTTPConnection:
        """A connection of its own for one request."""
        if self._folder is None:
            return http.client.HTTPConnection(_LOOPBACK, self.port)
        return _UnixConnection(self.address)

    def get(self, route: str) -> Any:
        """The JSON that `route` answers; raises as `post`."""
        with closing(self.connect()) as connection:
            connection.request("GET", route, headers=self._headers())
            return _answer(connection.getresponse())

    def post(self, route: str, request: Any) -> Any:
        """The JSON that `route` answers to `request`.

        Raises:
            UsageError: the engine says that the request is wrong.
            ModelRuntimeError: the engine failed.
        """
        with closing(self.connect()) as connection:
            connection.request("POST", route, json.dumps(request).encode(), self._headers())
            return _answer(connection.getresponse())

    def events(self, route: str, request: Any, abort: AbortFlag) -> Generator[Any, None, None]:
        """The events of a streamed answer; closing the iterator, or setting `abort`, makes the engine stop.

        Raises:
            UsageError, ModelRuntimeError: as `post`.
        """
        with closing(self.connect()) as connection:
            try:
                connection.request("POST", route, json.dumps(request).encode(), self._headers())
                with abort.also(lambda: _hang_up(connection)):
                    response = connection.getresponse()
                    if response.status != http.client.OK:
                        _answer(response)
                    yield from _events(response)
            except (OSError, http.client.HTTPException) as error:
                if not abort:
                    raise ModelRuntimeError(f"the engine gave no answer: {error}") from error

    def _headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def _hang_up(connection: http.client.HTTPConnection) -> None:
    """End reading at once: a thread or a signal handler calls this while another waits for the next event."""
    with suppress(OSError, AttributeError):  # it may have ended by itself
        connection.sock.shutdown(socket.SHUT_RDWR)


def _answer(response: http.client.HTTPResponse) -> Any:
    body = response.read()
    try:
        answer = json.loads(body)
    except ValueError:
        raise ModelRuntimeError(f"the engine answered {response.status} without JSON") from None
    if response.status == http.client.OK:
        return answer
    raise _problem(answer, response.status)


def _problem(answer: Any, status: int) -> UsageError | ModelRuntimeError:
    error = answer.get("error", answer) if isinstance(answer, dict) else {}
    message = str(error.get("message", "no reason given")) if isinstance(error, dict) else str(error)
    kind = UsageError if 400 <= status < 500 else ModelRuntimeError
    return kind(f"llama.cpp: {' '.join(message.split())}")


def _events(response: http.client.HTTPResponse) -> Iterator[Any]:
    for line in response:
        head, _, tail = line.partition(b": ")
        if head == b"error":
            raise _problem({"error": json.loads(tail)}, 500)
        if head != b"data" or tail.strip() == b"[DONE]":
            continue
        event = json.loads(tail)
        if isinstance(event, dict) and "error" in event:
            raise _problem(event, int(event["error"].get("code", 500)))
        yield event
