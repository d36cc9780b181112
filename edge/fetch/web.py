"""Ranges of a file on a web server: asked for, checked against what was asked, cuts and refusals told apart.

`urllib` speaks HTTP, follows redirects and honours HTTP_PROXY, HTTPS_PROXY and NO_PROXY. What the bytes mean, and
whether they are right, is left to the callers: nothing that a server says is believed without a digest.
"""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from edgepack.errors import NetworkError, UsageError
from edgepack.version import __version__

if TYPE_CHECKING:
    from types import TracebackType
    from typing import IO

    from typing_extensions import Self

DEFAULT_TIMEOUT = 30.0  # seconds without a byte
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # worth another try: RFC 9110, section 15


class ConnectionCutError(NetworkError):
    """A connection that ended, stalled or was refused for now: the same request may succeed later.

    Attributes:
        wait: seconds that the server asked for, 0 where it said nothing.
    """

    def __init__(self, text: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.wait = wait


@dataclass(frozen=True)
class Extent:
    """What a response holds: bytes [start, stop) of a file of `total` bytes; None where the server tells no length."""

    start: int
    stop: int | None
    total: int | None


class _StrictRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects to HTTP(S) only, and never from HTTPS back to what anybody may read and change."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request that follows, or an error."""
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme == "http"):
            raise NetworkError(f"{shown(req.full_url)}: refused to be redirected from {old.scheme} to {new.scheme}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_url(url: str) -> str:
    """`url`, if it is one of HTTP or HTTPS with a host.

    Raises:
        UsageError: it is not.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or any(ord(c) <= 32 or ord(c) == 127 for c in url):
        raise UsageError(f"expected an address http(s)://host/path, got {url!r}")
    return url


def shown(url: str) -> str:
    """The address as messages may show it: without user, password and query, which may be secrets."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))


class Response:
    """A body under way; a context manager."""

    def __init__(self, body: http.client.HTTPResponse, extent: Extent, url: str) -> None:
        self.extent = extent
        self._body = body
        self._url = url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: object, _traceback: TracebackType | None) -> None:
        self._body.close()

    def read(self, size: int) -> bytes:
        """At most `size` bytes, at least one.

        Raises:
            ConnectionCutError: none came.
        """
        try:
            block = self._body.read1(size)
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionCutError(f"{shown(self._url)}: {_reason(error)}") from None
        if not block:
            raise ConnectionCutError(f"{shown(self._url)}: the connection ended early")
        return block


@dataclass(frozen=True)
class Web:
    """How servers are spoken to.

    Attributes:
        timeout: seconds without a byte after which a connection counts as cut.
    """

    timeout: float = DEFAULT_TIMEOUT

    def get(self, url: str, start: int = 0, stop: int | None = None) -> Response:
        """Ask for bytes [start, stop) of the file at `url`; a server may answer with the whole file instead.

        Raises:
            NetworkError: it is not there, or the answer is not of that range.
            ConnectionCutError: no connection, or the server is busy.
        """
        last = "" if stop is None else str(stop - 1)
        headers = {
            "Range": f"bytes={start}-{last}",
            "Accept-Encoding": "identity",
            "User-Agent": f"edgepack/{__version__}",
        }
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 (check_url allows HTTP and HTTPS only)
        try:
            body = urllib.request.build_opener(_StrictRedirects).open(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            _refused(url, error)
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionCutError(f"{shown(url)}: {_reason(error)}") from None
        try:
            return Response(body, _extent(url, body, start, stop), url)
        except BaseException:
            body.close()
            raise


def _refused(url: str, error: urllib.error.HTTPError) -> NoReturn:
    text = f"{shown(url)}: the server answers {error.code} {error.reason}"
    wait = error.headers.get("Retry-After", "")
    error.close()
    if error.code in _PASSING:
        raise ConnectionCutError(text, min(60.0, float(wait))) if wait.isdecimal() else ConnectionCutError(text)
    raise NetworkError(text)


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return _reason(error.reason)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _extent(url: str, body: http.client.HTTPResponse, start: int, stop: int | None) -> Extent:
    if body.headers.get("Content-Encoding", "identity") not in ("identity", ""):
        raise NetworkError(f"{shown(url)}: expected the file's own bytes, got them {body.headers['Content-Encoding']}")
    if body.status != 206:
        length = body.headers.get("Content-Length", "")
        return Extent(0, None, int(length) if length.isdecimal() and len(length) < 19 else None)
    match = _CONTENT_RANGE.fullmatch(body.headers.get("Content-Range", ""))
    got = Extent(int(match[1]), int(match[2]) + 1, int(match[3])) if match else None
    if got is None or got.start != start or got.total is None or got.stop != min(stop or got.total, got.total):
        asked = f"bytes {start} to {'the end' if stop is None else stop}"
        raise NetworkError(f"{shown(url)}: asked for {asked}, got '{body.headers.get('Content-Range')}'")
    return got
