"""The line editor of a terminal, by prompt_toolkit: imported where there is one. What lines mean is `commands`'."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.output.defaults import create_output

from edgepack.cli.chat.entries import Entry, entry_of, is_open
from edgepack.cli.chat.history import HistoryFile, history_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prompt_toolkit.input import Input
    from prompt_toolkit.key_binding import KeyPressEvent
    from prompt_toolkit.output import Output

PROMPT, CONTINUATION = "> ", "… "


class KeptHistory(History):
    """prompt_toolkit's view of the history file."""

    def __init__(self, file: HistoryFile) -> None:
        super().__init__()
        self._file = file
        self.on = True

    def load_history_strings(self) -> Iterable[str]:
        """Newest first."""
        return reversed(self._file.read())

    def store_string(self, string: str) -> None:
        """Keep an entry."""
        if self.on:
            self._file.add(string)


def _bindings() -> KeyBindings:
    """Enter sends, unless quotation marks are open; Alt+Enter begins a line."""
    bindings = KeyBindings()

    @bindings.add("enter")
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


class LineEditor:
    """Entries from a terminal. What is pasted stays one message: the terminal says where it begins and ends.

    Args:
        commands: what the Tab key completes.
        history: where entries are kept; None for the user's file.
        source: another input than the terminal, for tests.
        target: another output.
    """

    edits = True

    def __init__(
        self,
        commands: Iterable[str],
        history: HistoryFile | None = None,
        source: Input | None = None,
        target: Output | None = None,
    ) -> None:
        self._history = KeptHistory(history or HistoryFile(history_path()))
        # Where the answers go into a file, the prompt does not.
        shown = target or (None if sys.stdout.isatty() else create_output(stdout=sys.stderr))
        self._session: PromptSession[str] = PromptSession(
            PROMPT, multiline=True, prompt_continuation=CONTINUATION, history=self._history,
            key_bindings=_bindings(), completer=WordCompleter(sorted(commands), sentence=True),
            complete_while_typing=False, enable_open_in_editor=True, input=source, output=shown,
            enable_history_search=Condition(lambda: True),
        )  # fmt: skip

    def read(self, prefill: str = "") -> Entry | None:
        """As `Reader.read`."""
        try:
            text = self._session.prompt(default=prefill)
        except EOFError:
            return None
        # Half a surrogate pair, from a terminal that sends no UTF-8, is no character.
        return entry_of(text.encode("utf-8", "replace").decode())

    def remember(self, on: bool) -> None:
        """As `Reader.remember`."""
        self._history.on = on
