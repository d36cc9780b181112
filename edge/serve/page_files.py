"""The chat page's files and the headers that they are served under; serving them is `front`'s."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_PAGE = Path(__file__).with_name("chat_page.html")
# Nothing but what the page itself brings: no other site's script, image, font or frame.
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class PageFile:
    """One file of the page: its bytes, its type and its `ETag` with quotation marks."""

    body: bytes
    media_type: str
    etag: str


def page_files() -> dict[str, PageFile]:
    """Every file of the page by the path it is asked for; read once, so that no request reaches the file system."""
    body = _PAGE.read_bytes()
    return {"/": PageFile(body, "text/html; charset=utf-8", f'"{hashlib.sha256(body).hexdigest()[:32]}"')}
