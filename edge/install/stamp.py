"""What a later start compares before it trusts a file that was verified once. Where files lie is `cache`'s."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.files.source import open_source

if TYPE_CHECKING:
    from pathlib import Path

_HEADER_BYTES = 1 << 20  # of the beginning, hashed at each start: the header, or most of it


@dataclass(frozen=True)
class Stamp:
    """What a later start compares before it trusts a file that was verified once.

    Attributes:
        bytes: length of the file.
        mtime_ns: when it was last written.
        head_sha256: of its first 2²⁰ bytes.
    """

    bytes: int
    mtime_ns: int
    head_sha256: str


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file as it is now."""
    with open_source(path) as stream:
        status = os.fstat(stream.fileno())
        return Stamp(status.st_size, status.st_mtime_ns, hashlib.sha256(stream.read(_HEADER_BYTES)).hexdigest())


def describe(stamp: Stamp) -> str:
    """For messages: length, time and the beginning of the digest."""
    return f"{stamp.bytes} bytes of {stamp.mtime_ns // 10**9} with {stamp.head_sha256[:8]}…"
