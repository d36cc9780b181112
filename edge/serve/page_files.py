"""The files of the chat page and the headers that they are served under; serving them is `front`'s."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).with_name("page")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".LICENSE": "text/plain; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
}
# Nothing but what this server brings: no other site's script, image, font or frame, no script or style in the HTML,
# and text becomes HTML in DOMPurify alone. Images are those that a user attaches (data:).
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types dompurify"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again each time, and not sent again while its ETag holds
}


@dataclass(frozen=True)
class PageFile:
    """One file of the page.

    Attributes:
        body: its bytes.
        media_type: for `Content-Type`.
        etag: for `ETag`, with its quotation marks; differs where the bytes differ.
    """

    body: bytes
    media_type: str
    etag: str


def page_files() -> dict[str, PageFile]:
    """Every file of the page by the path it is asked for: `/` is the page itself, the others are below `/page/`.

    Read once, so that no path of a request ever reaches the file system.
    """
    found = {}
    for path in sorted(_FOLDER.rglob("*")):
        if path.suffix in _TYPES and path.is_file():
            body = path.read_bytes()
            name = path.relative_to(_FOLDER).as_posix()
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            found["/" if name == "index.html" else f"/page/{name}"] = PageFile(body, _TYPES[path.suffix], tag)
    return found
