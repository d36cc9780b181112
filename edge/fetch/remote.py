"""A file on a server as a source of bytes, so that an archive is opened, and judged, before its body is fetched.

Only head and tail are read ahead. Which server is asked is left to `fetch`, whole bodies to `download`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.edge.fetch.patience import Patience
from edgepack.edge.fetch.web import shown
from edgepack.errors import ArchiveError, NetworkError
from edgepack.packaging.format import FOOTER_BYTES, HEADER_BYTES

if TYPE_CHECKING:
    from edgepack.edge.fetch.web import Web

TAIL_BYTES = 1 << 16  # holds index, signatures and footer of most archives in one request
MAX_READ_BYTES = 256 << 20  # an index of 3.5 million chunks; more is not read on a server's word


class RangesUnsupportedError(NetworkError):
    """The server answers with whole files only.

    Attributes:
        url: the address that was asked.
    """

    def __init__(self, url: str) -> None:
        super().__init__(f"{shown(url)}: the server answers with whole files only")
        self.url = url


def read_range(web: Web, url: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of the file at `url`; a cut connection goes on at the byte where it was cut.

    Raises:
        NetworkError: the file is not there, is shorter, or nothing came in many tries.
        RangesUnsupportedError: the server sends the whole file.
    """
    got, patience = bytearray(), Patience()
    while len(got) < stop - start:
        with patience.over_cuts(), web.get(url, start + len(got), stop) as response:
            if response.extent.stop is None:
                raise RangesUnsupportedError(url)
            if response.extent.stop < stop:
                raise NetworkError(f"{shown(url)}: expected {stop} bytes or more, got {response.extent.total}")
            while len(got) < stop - start:
                got += response.read(stop - start - len(got))
                patience.progress()
    return bytes(got)


class RemoteSource:
    """A `ByteSource` over one address; small reads come from what was read ahead."""

    def __init__(self, web: Web, url: str, total: int) -> None:
        self._web, self._url, self._total = web, url, total
        tail = max(HEADER_BYTES, total - TAIL_BYTES)
        self._blocks = [(0, read_range(web, url, 0, min(total, HEADER_BYTES)))]
        if tail < total:
            self._blocks.append((tail, read_range(web, url, tail, total)))

    @property
    def size(self) -> int:
        """Length of the file, as the server told it."""
        return self._total

    def read_at(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`.

        Raises:
            ArchiveError: they end before, or are more than an index can be.
            NetworkError: the server does not give them.
        """
        if offset + size > self._total or size > MAX_READ_BYTES:
            raise ArchiveError(f"expected {size} bytes at {offset} of {self._total}, at most {MAX_READ_BYTES}")
        for start, block in self._blocks:
            if start <= offset and offset + size <= start + len(block):
                return block[offset - start : offset - start + size]
        block = read_range(self._web, self._url, offset, offset + size)
        self._blocks.append((offset, block))
        return block

    def close(self) -> None:
        """Nothing is held open."""


def open_remote(web: Web, url: str) -> RemoteSource:
    """The file at `url` as a source.

    Raises:
        NetworkError: it cannot be reached, or is too short for an archive.
        RangesUnsupportedError: the server sends whole files only.
    """
    extent, patience = None, Patience()
    while extent is None:
        with patience.over_cuts(), web.get(url, 0, HEADER_BYTES) as response:
            extent = response.extent
    if extent.stop is None or extent.total is None:
        raise RangesUnsupportedError(url)
    if extent.total < HEADER_BYTES + FOOTER_BYTES:
        raise NetworkError(f"{shown(url)}: expected an archive, got a file of {extent.total} bytes")
    return RemoteSource(web, url, extent.total)
