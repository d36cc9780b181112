"""Where questions come from: lines of a pipe. A terminal is `line_editor`'s, what they mean `commands`'."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable

QUOTES = '"""'


@dataclass(frozen=True)
class Entry:
    """What somebody wrote.

    Attributes:
        text: without quotation marks and line ends around it.
        literal: it was several lines, or within three quotation marks: a message, whatever it begins with.
    """

    text: str
    literal: bool = False


class Reader(Protocol):
    """A source of entries."""

    def read(self, prefill: str = "") -> Entry | None:
        """The next entry; None when there are no more.

        Args:
            prefill: a text to begin with, where it can be edited.

        Raises:
            KeyboardInterrupt: Ctrl-C instead of an entry.
        """
        ...

    @property
    def edits(self) -> bool:
        """Whether `prefill` can be edited."""
        ...

    def remember(self, on: bool) -> None:
        """Keep what is entered from now on in the history, or not."""
        ...


def is_open(text: str) -> bool:
    """Whether three quotation marks begin the text and none end it yet."""
    begun = text.lstrip()
    return begun.startswith(QUOTES) and not (begun.rstrip().endswith(QUOTES) and len(begun.rstrip()) >= 2 * len(QUOTES))


def entry_of(text: str) -> Entry:
    """The entry that a text is; quotation marks that are still open end with it."""
    stripped = text.strip()
    if stripped.startswith(QUOTES):
        inner = stripped.removeprefix(QUOTES)
        return Entry(inner.removesuffix(QUOTES).strip("\n"), literal=True)
    return Entry(stripped, literal="\n" in stripped)


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
