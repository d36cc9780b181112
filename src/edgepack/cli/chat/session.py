"""The chat: entries in, answers out, until it ends. A question that fails does not end it."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING

from edgepack.cli.chat.commands import COMMANDS, is_command, obey
from edgepack.cli.chat.reading import open_reader
from edgepack.cli.chat.showing import show_ending, show_pieces, speed_line
from edgepack.cli.output import note
from edgepack.edge.llama.interrupt import ctrl_c_sets
from edgepack.errors import EdgepackError

if TYPE_CHECKING:
    from collections.abc import Generator

    from edgepack.cli.chat.entries import Entry, Reader
    from edgepack.edge.chat.conversation import Conversation
    from edgepack.edge.chat.thinking import Piece


class Session:
    """A conversation with somebody.

    Args:
        conversation: what it is about.
        reader: where entries come from.
        verbose: tell tokens/s and context after each answer.
    """

    def __init__(self, conversation: Conversation, reader: Reader, *, verbose: bool = False) -> None:
        self.conversation = conversation
        self.reader = reader
        self.verbose = verbose

    def run(self) -> None:
        """Answer until the entries end or /bye."""
        while self._next():
            pass

    def _next(self) -> bool:
        """Read an entry and answer it; False when the chat is to end."""
        try:
            entry = self.reader.read()
            return entry is not None and self._take(entry)
        except EdgepackError as error:  # the conversation goes on: only this failed
            note(f"edgepack: error: {error}")
        except KeyboardInterrupt:  # no answer was running
            note("(Ctrl-D leaves)")
        return True

    def _take(self, entry: Entry) -> bool:
        """Answer an entry, or do as it says; False when the chat is to end."""
        if not entry.text.strip():
            return True
        if not entry.literal and is_command(entry.text):
            return obey(self, entry.text)
        text = entry.text.removeprefix("/") if entry.text.startswith("//") and not entry.literal else entry.text
        self.show(self.conversation.reply(text))
        return True

    def show(self, pieces: Generator[Piece, None, None]) -> None:
        """Show an answer as it comes; Ctrl-C ends it where it is."""
        conversation = self.conversation
        forgotten = conversation.forgotten
        with ctrl_c_sets(conversation.model.abort), closing(pieces):
            show_pieces(pieces)
        assert conversation.last is not None
        show_ending(conversation, conversation.last)
        if conversation.forgotten > forgotten:
            note(f"(the context is full: the {conversation.forgotten} oldest turns are forgotten)")
        if self.verbose:
            note(f"({speed_line(conversation, conversation.last)})")

    def edited(self, text: str) -> str:
        """A text, after somebody has edited it; empty where nothing is left."""
        entry = self.reader.read(text)
        return entry.text if entry else ""


def converse(conversation: Conversation, *, verbose: bool = False) -> None:
    """Chat on the terminal, or over a pipe."""
    if sys.stdin.isatty():
        note("Ask away; /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.")
    Session(conversation, open_reader(COMMANDS), verbose=verbose).run()
