"""Where questions come from: lines of a pipe. A terminal is `line_editor`'s, what they mean `commands`'."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from edgepack.cli.chat.entries import entry_of, is_open

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgepack.cli.chat.entries import Entry, Reader


class LineReader:
    """Entries from lines, each one a message, but for those within three quotation marks."""

    edits = False

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)

    def read(self, prefill: str = "") -> Entry | None:
        """As `Reader.read`."""
        text = next(self._lines, None)
        if text is None:
            return None
        while is_open(text) and (line := next(self._lines, None)) is not None:
            text += line
        return entry_of(text)

    def remember(self, on: bool) -> None:
        """Lines of a pipe are never kept."""


def lines_of(stream: TextIO) -> TextIO:
    """The stream as UTF-8 whatever the system's encoding; bytes that are none become U+FFFD."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding="utf-8", errors="replace")
    return stream


def open_reader(commands: Iterable[str]) -> Reader:
    """The line editor on a terminal, lines otherwise.

    Args:
        commands: what the Tab key completes.
    """
    if sys.stdin.isatty():
        from edgepack.cli.chat.line_editor import LineEditor

        return LineEditor(commands)
    return LineReader(lines_of(sys.stdin))
