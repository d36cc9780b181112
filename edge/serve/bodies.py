"""Bodies of requests: refused before they are read where they are too large, bounded together, and only JSON objects.

What is in them is checked in `protocol`.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from edgepack.edge.serve.protocol.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping

    from starlette.requests import Request

    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MOST_TEXT = 8 << 20
MOST_PICTURES = 32 << 20
_MOST_TOGETHER = 64 << 20
_SECONDS = 30.0  # without a byte of a body that was promised
_DRAIN_SECONDS = 2.0
_PARSED_ASIDE = 1 << 18  # bytes above which parsing would keep other requests waiting


class BodyReader:
    """Reads bodies, all of them together within one amount of memory.

    Args:
        most: bytes of one body.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        """The request's JSON object; its bytes count as long as the block runs.

        Raises:
            RequestError: it is too large (413, nothing was read), too slow, no JSON, or no object.
        """
        promised = request.headers.get("content-length")
        if promised is not None and int(promised) > self.most:
            raise self._too_large()
        room = min(int(promised), self.most) if promised is not None else self.most
        if self._held + room > _MOST_TOGETHER:
            raise RequestError("the server is reading other large requests", status=503, retry_after=1)
        self._held += room
        try:
            yield await _parsed(await self._bytes(request.receive))
        finally:
            self._held -= room

    def _too_large(self) -> RequestError:
        return RequestError(f"expected a body of at most {self.most} bytes", status=413, code="request_too_large")

    async def _bytes(self, receive: Receive) -> bytes:
        body = bytearray()
        while True:
            try:
                message = await asyncio.wait_for(receive(), _SECONDS)
            except asyncio.TimeoutError:
                raise RequestError("the body did not come", status=408) from None
            if message["type"] == "http.disconnect":
                raise RequestError("the client left", status=400)
            body += message.get("body", b"")
            if len(body) > self.most:
                raise self._too_large()
            if not message.get("more_body"):
                return bytes(body)


async def drain(receive: Receive) -> None:
    """Throw away what a refused client still sends, so that it hears the refusal; not for longer than a moment."""

    async def read() -> None:
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            pass

    try:
        await asyncio.wait_for(read(), _DRAIN_SECONDS)
    except asyncio.TimeoutError:
        return


async def _parsed(body: bytes) -> dict[str, Any]:
    value = await asyncio.to_thread(_json, body) if len(body) > _PARSED_ASIDE else _json(body)
    if not isinstance(value, dict):
        raise RequestError("expected a JSON object")
    return value


def _json(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except RecursionError:
        raise RequestError("expected JSON that is not nested so deep") from None
    except ValueError as error:  # also bytes that are not UTF-8, and numbers with thousands of digits
        raise RequestError(f"expected JSON: {error}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
