"""A file from a server that knows no ranges: the body from its first byte to its last, within limits.

Whether it is right is left to `archive_fetch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.edge.fetch.patience import Patience
from edgepack.errors import NetworkError
from edgepack.files.claim import check_output

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

    from edgepack.edge.fetch.web import Response, Web
    from edgepack.progress import Progress

_BLOCK_BYTES = 1 << 18
_RESERVE_BYTES = 64 << 20  # of disk that a body of unknown length leaves free


def fetch_whole(web: Web, url: str, stream: BinaryIO, output: Path, progress: Progress) -> int:
    """Write the body of `url` to `stream`; returns the bytes received, repetitions after a cut included.

    Raises:
        NetworkError: it cannot be had in many tries.
        ResourceError: the disk is too small.
    """
    patience, before = Patience(), 0
    while True:
        with patience.over_cuts():
            before += stream.tell()
            stream.seek(0)
            stream.truncate()
            with web.get(url) as response:
                return before + _copy(response, stream, output, progress)


def _copy(response: Response, stream: BinaryIO, output: Path, progress: Progress) -> int:
    total = response.extent.total
    if total is None:
        raise NetworkError(
            "the server tells no length and gives no ranges: the file's end could not be told from a cut"
        )
    check_output(output, total + _RESERVE_BYTES, force=True)
    with progress("fetching", total) as advance:
        while stream.tell() < total:
            block = response.read(min(_BLOCK_BYTES, total - stream.tell()))
            stream.write(block)
            advance(len(block))
    return total
