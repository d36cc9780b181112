"""The SHA-256 of a file, read block by block. What is done with it is its caller's."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from edgepack.files.source import open_source
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO

    from edgepack.progress import Progress

SUMS = "SHA256SUMS"
_BLOCK_BYTES = 8 << 20


def file_sha256(path: Path, label: str = "digesting", progress: Progress = silent) -> str:
    """SHA-256 of a file, hexadecimal; `progress` is told the bytes read under `label`."""
    with open_source(path) as stream, progress(label, path.stat().st_size) as advance:
        return stream_sha256(stream, advance=advance).hex()


def write_sha256sums(folder: Path) -> dict[str, str]:
    """Write SHA256SUMS of every file below `folder`, as sha256sum writes and checks it; gives name → digest, sorted."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    sums = {name: file_sha256(folder / name) for name in names}
    text = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    (folder / SUMS).write_text(text, "utf-8", newline="\n")
    return sums


def stream_sha256(
    stream: BinaryIO, length: int | None = None, advance: Callable[[int], object] = lambda _bytes: None
) -> bytes:
    """SHA-256 of a stream from where it stands: of `length` bytes, of fewer where it ends before, or of all.

    Args:
        stream: left behind what was read.
        length: bytes; None for all.
        advance: told the bytes of each block.
    """
    digest, left = hashlib.sha256(), length
    while block := stream.read(_BLOCK_BYTES if left is None else min(left, _BLOCK_BYTES)):
        digest.update(block)
        advance(len(block))
        left = None if left is None else left - len(block)
    return digest.digest()
