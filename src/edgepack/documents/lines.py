"""Text files line by line, however long they are: no more than a line's piece is in memory."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.files.source import open_source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PIECE = 1 << 16
"""Bytes that are read at once, and the longest piece of a line."""


def text_pieces(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """A file's text in pieces of at most `PIECE` bytes; a byte order mark is passed over.

    Raises:
        UsageError: absent, no file, or bytes that are no text of this encoding; the text names the first one.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig" if encoding == "utf-8" else encoding)()
    at = 0
    with open_source(path) as stream:
        while True:
            raw = stream.read(PIECE)
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                place = at - (len(error.object) - len(raw)) + error.start
                raise UsageError(
                    f"{path}: expected {encoding} text, byte {place} is {error.object[error.start]:#04x}"
                ) from None
            at += len(raw)
            if text:
                yield text
            if not raw:
                return


def lines(path: Path, most: int = PIECE) -> Iterator[str]:
    """A UTF-8 file's lines without their ends; a line of more than `most` characters comes in pieces.

    Raises:
        UsageError: as `text_pieces`.
    """
    left = ""
    for piece in text_pieces(path):
        *whole, left = (left + piece).replace("\r\n", "\n").split("\n")
        for line in whole:
            yield from _cut(line.rstrip("\r"), most)
        while len(left) > most:
            yield left[:most]
            left = left[most:]
    if left:
        yield from _cut(left.rstrip("\r"), most)


def _cut(line: str, most: int) -> Iterator[str]:
    yield line[:most]
    for start in range(most, len(line), most):
        yield line[start : start + most]
