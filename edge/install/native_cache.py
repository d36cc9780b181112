"""Keeps what files of the variant decode to in the model cache, so that they are decoded once.

Decoding is left to `native`, the cache's own rules to `install`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from edgepack.edge.install.lock import locked
from edgepack.edge.install.stamp import stamp_of
from edgepack.errors import GGUFError
from edgepack.files.output import atomic_output
from edgepack.files.source import FileState, check_unchanged
from edgepack.gguf.reader import read_header
from edgepack.gguf.variant import is_variant
from edgepack.progress import silent

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.edge.install.cache import ModelCache
    from edgepack.gguf.reader import GGUFHeader
    from edgepack.progress import Progress

# Raised when the same file would decode to other bytes, so that earlier results are not taken for it.
_DECODER_VERSION = 1


def cached_native(path: Path, cache: ModelCache, progress: Progress = silent, header: GGUFHeader | None = None) -> Path:
    """`path` itself for a plain GGUF, else its decoded form, from the cache when it has been decoded before.

    Args:
        path: a GGUF.
        cache: where decoded forms are kept.
        progress: told of bytes decoded.
        header: of the file, where it was read already: a large vocabulary takes a tenth of a second.

    Raises:
        GGUFError, CodecError: the file is not sound, or made by a newer edgepack.
        NumericError: decoded weights do not fit into their native type.
        ResourceError: the disk is too small.
    """
    began = FileState.of(path)
    if not is_variant(header or read_header(path)):
        return path
    identity = json.dumps({**asdict(stamp_of(path)), "decoder": _DECODER_VERSION}, sort_keys=True)
    key = hashlib.sha256(identity.encode()).hexdigest()
    link = cache.folder / f"{key}.native"
    with locked(cache.folder / f"{key}.lock"):
        return _linked(link, cache) or _decode(path, began, link, cache, progress)


def _linked(link: Path, cache: ModelCache) -> Path | None:
    """What an earlier start decoded, when it is still there and whole."""
    try:
        sha256 = json.loads(link.read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return cache.find(sha256) if isinstance(sha256, str) and sha256.isalnum() else None


def _decode(path: Path, began: FileState, link: Path, cache: ModelCache, progress: Progress) -> Path:
    from edgepack.edge.install.native import plan_native, write_native

    fresh = link.with_suffix(".decoded")
    write_native(plan_native(path), fresh, progress=progress)
    check_unchanged(
        path, began, GGUFError
    )  # else the link, made of what lay there before, would name what lies there now
    native, sha256 = cache.add(fresh, f"{path.stem} (native)", path.name)
    with atomic_output(link) as stream:
        stream.write(json.dumps({"sha256": sha256}).encode())
    return native
