"""Looks at each request's head before anything else does: who asks, from where, and with which key.

What is asked is left to `front`.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from edgepack.edge.serve.answers import send_error
from edgepack.edge.serve.protocol.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Message = dict[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

_LOCAL = {"localhost", "127.0.0.1", "::1"}
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?", re.ASCII)
_METHODS = b"GET, POST, OPTIONS"
_PREFLIGHT_SECONDS = b"600"


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        api_key: what clients must send, or None.
        any_host: the server is public, so it may be called by any name.
        origins: websites that may use it besides its own page, such as `https://app.example`.
        public: whether a path is answered without a key.
    """

    api_key: str | None
    any_host: bool
    origins: frozenset[str]
    public: Callable[[str], bool]


class RequestGuard:
    """ASGI middleware that answers strangers with an error and lets others pass."""

    def __init__(self, app: Any, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] != "http":
            return  # no WebSockets, and nothing to do when the server starts and ends
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        origin = ""
        try:
            self._check_host(headers)
            origin = self._allowed_origin(headers)
            if scope["method"] == "OPTIONS" and origin:
                await _preflight(send, origin, headers)
                return
            self._check_key(scope["path"], headers)
        except RequestError as error:
            await send_error(scope["path"], _with_origin(send, origin), error, receive)
            return
        await self._app(scope, receive, _with_origin(send, origin))

    def _check_host(self, headers: Mapping[str, str]) -> None:
        """A website that has its own name lead here (DNS rebinding) is not let in."""
        given = headers.get("host", "")
        host = _host_of(f"//{given}") if _HOST.fullmatch(given) else None
        if host is None:
            raise RequestError("expected a Host header that is a name or an address")
        if not self._access.any_host and host not in _LOCAL:
            raise RequestError(f"host '{host[:80]}': this server answers to localhost only", status=403)

    def _allowed_origin(self, headers: Mapping[str, str]) -> str:
        """The other website that asks and may; empty where none asks."""
        origin = headers.get("origin")
        if not origin:
            return ""
        if origin != "null" and _host_of(origin) is None:
            raise RequestError("expected an Origin header that is a website's address")
        if origin in self._access.origins:
            return origin
        if urlsplit(origin).netloc != headers.get("host"):
            text = f"origin '{origin[:80]}': other websites may not use this server; --allow-origin lets one in"
            raise RequestError(text, status=403)
        return ""

    def _check_key(self, path: str, headers: Mapping[str, str]) -> None:
        key = self._access.api_key
        if key is None or self._access.public(path):
            return
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), key.encode()):
            raise RequestError("expected an API key: Authorization: Bearer KEY", status=401, code="invalid_api_key")


def _host_of(address: str) -> str | None:
    """The host in an address; None where there is none or it is malformed."""
    try:
        parts = urlsplit(address)
        _port = parts.port
        return parts.hostname
    except ValueError:
        return None


def _cors(origin: str) -> list[tuple[bytes, bytes]]:
    return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]


def _with_origin(send: Send, origin: str) -> Send:
    """`send`, with the headers that let the website's script read the answer."""
    if not origin:
        return send

    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *_cors(origin)]}
        await send(message)

    return told


async def _preflight(send: Send, origin: str, headers: Mapping[str, str]) -> None:
    """What a browser asks before it lets a website's script ask."""
    wanted = headers.get("access-control-request-headers", "").encode("latin-1")
    answer = [
        *_cors(origin),
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-allow-headers", wanted or b"content-type, authorization"),
        (b"access-control-max-age", _PREFLIGHT_SECONDS),
        (b"content-length", b"0"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": answer})
    await send({"type": "http.response.body", "body": b""})
