"""One request to the engine and its answer, over a socket of this machine. What they mean is left to others.

Each exchange has a connection of its own: leaving the block closes it, which is how the engine learns that nobody
waits any more.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h11

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_BLOCK = 1 << 16


class EngineGoneError(Exception):
    """The engine died or hung up before its answer was whole."""


class EngineUnreachableError(EngineGoneError):
    """The engine was gone already: nothing of the request reached it."""


@dataclass(frozen=True)
class EngineAddress:
    """Where an engine listens, and the key to it.

    Attributes:
        path: of its socket; empty where it listens on a port.
        port: on 127.0.0.1.
        secret: the key.
    """

    path: str
    port: int
    secret: str

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Headers of every request."""
        return [("Host", "engine"), ("Authorization", f"Bearer {self.secret}"), ("Connection", "close")]


class EngineAnswer:
    """An answer whose head has come and whose body is still to be read."""

    def __init__(self, status: int, connection: h11.Connection, reader: asyncio.StreamReader) -> None:
        self.status = status
        self._connection = connection
        self._reader = reader

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes; raises EngineGoneError where it ends too early."""
        while True:
            event = await _next_event(self._connection, self._reader)
            if isinstance(event, h11.EndOfMessage):
                return
            if isinstance(event, h11.Data):
                yield bytes(event.data)

    async def body(self) -> bytes:
        """All of it."""
        return b"".join([piece async for piece in self.pieces()])


@asynccontextmanager
async def exchange(address: EngineAddress, method: str, path: str, body: bytes = b"") -> AsyncIterator[EngineAnswer]:
    """Ask the engine; leaving the block hangs up.

    Raises:
        EngineUnreachableError: it is gone.
        EngineGoneError: it dies before it answers.
    """
    try:
        reader, writer = await _connect(address)
    except OSError as error:
        raise EngineUnreachableError(str(error)) from error
    try:
        connection = h11.Connection(h11.CLIENT)
        headers = [*address.headers, ("Content-Length", str(len(body))), ("Content-Type", "application/json")]
        request = h11.Request(method=method, target=path, headers=headers)
        await _send(writer, connection, request, body)
        event = await _next_event(connection, reader)
        while isinstance(event, h11.InformationalResponse):
            event = await _next_event(connection, reader)
        if not isinstance(event, h11.Response):
            raise EngineGoneError("the engine hung up")
        yield EngineAnswer(event.status_code, connection, reader)
    finally:
        writer.transport.abort()


async def _connect(address: EngineAddress) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.path:
        return await asyncio.open_unix_connection(address.path)
    return await asyncio.open_connection("127.0.0.1", address.port)


async def _send(writer: asyncio.StreamWriter, connection: h11.Connection, request: h11.Request, body: bytes) -> None:
    writer.write(connection.send(request) or b"")
    if body:
        writer.write(connection.send(h11.Data(data=body)) or b"")
    writer.write(connection.send(h11.EndOfMessage()) or b"")
    try:
        await writer.drain()
    except OSError as error:
        raise EngineGoneError(str(error)) from error


async def _next_event(connection: h11.Connection, reader: asyncio.StreamReader) -> Any:
    """The next event of the answer."""
    while True:
        try:
            event = connection.next_event()
            if event is not h11.NEED_DATA:
                break
            connection.receive_data(await reader.read(_BLOCK))
        except (OSError, h11.RemoteProtocolError) as error:
            raise EngineGoneError(str(error)) from error
    if isinstance(event, h11.ConnectionClosed):
        raise EngineGoneError("the engine hung up")
    return event
