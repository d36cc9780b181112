"""Where the archives on this machine were fetched from, by the digest of their index: what `update` asks.

Kept in one small file of the cache folder, so that neither the archive nor the folder that it lies in says so.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edgepack.edge.install.cache_folder import cache_folder
from edgepack.edge.install.lock import locked
from edgepack.files.output import atomic_output

if TYPE_CHECKING:
    from pathlib import Path

_NAME = "fetched.json"
_MAX_BYTES = 1 << 20
_MAX_ENTRIES = 1000


def _read(path: Path) -> dict[str, list[str]]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            return {}
        entries = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {
        digest: urls
        for digest, urls in entries.items()
        if isinstance(urls, list) and urls and all(isinstance(url, str) for url in urls)
    }


def remember(index_sha256: str, urls: tuple[str, ...]) -> None:
    """Keep the addresses of the archive whose index record has this digest; the oldest entries are forgotten."""
    path = cache_folder() / _NAME
    with locked(path.with_suffix(".lock")):
        entries = _read(path)
        entries.pop(index_sha256, None)
        entries[index_sha256] = list(urls)
        kept = dict(list(entries.items())[-_MAX_ENTRIES:])
        with atomic_output(path) as stream:
            stream.write(json.dumps(kept, indent=1).encode())


def recall(index_sha256: str) -> tuple[str, ...]:
    """The addresses that were kept; none where the archive was not fetched on this machine."""
    return tuple(_read(cache_folder() / _NAME).get(index_sha256, ()))
