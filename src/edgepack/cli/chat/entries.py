"""What somebody writes, as entries: a line, or several within three quotation marks. Reading them is left to others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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
