"""The chat on a terminal, or over a pipe: lines in, answers out, a few commands that begin with a slash."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import note
from edgepack.edge.llama.interrupt import ctrl_c_sets
from edgepack.errors import EdgepackError
from edgepack.files.output import atomic_output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepack.edge.chat.conversation import Conversation

_HELP = """/reset          forget the conversation (the system message stays)
/save FILE      write it as JSON
/system TEXT    another system message, and a new conversation
/bye            leave (Ctrl-D too); Ctrl-C stops an answer"""


def converse(conversation: Conversation) -> None:
    """Answer until the input ends or /bye."""
    if sys.stdin.isatty():
        note("Ask away; /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.")
    for line in _lines():
        if not line.strip():
            continue
        try:
            if line.startswith("/"):
                if not _obey(conversation, line.strip()):
                    return
            else:
                _answer(conversation, line)
        except EdgepackError as error:  # the conversation goes on: only this question failed
            note(f"edgepack: error: {error}")
        except KeyboardInterrupt:  # it came just before or after the answer
            note("(stopped)")


def _lines() -> Iterator[str]:
    """Lines of the input, asked for with a prompt on a terminal; Ctrl-C there begins a new line."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    while (line := _ask()) is not None:
        yield line
    note("")


def _ask() -> str | None:
    """A line from the terminal; None when it ends, empty after Ctrl-C."""
    try:
        return input("> ")
    except EOFError:
        return None
    except KeyboardInterrupt:
        note("\n(Ctrl-D leaves)")
        return ""


def _answer(conversation: Conversation, question: str) -> None:
    forgotten = conversation.forgotten
    with ctrl_c_sets(conversation.model.abort), closing(conversation.answer(question)) as pieces:
        for piece in pieces:
            click.echo(piece, nl=False)
            sys.stdout.flush()
    click.echo()
    if conversation.model.abort:
        note("(stopped)")
    if conversation.forgotten > forgotten:
        note(f"(the context is full: the {conversation.forgotten} oldest turns are forgotten)")


def _obey(conversation: Conversation, line: str) -> bool:
    """Carry out a command; False when the chat is to end."""
    command, _, rest = line.partition(" ")
    if command in ("/bye", "/exit", "/quit"):
        return False
    if command == "/reset":
        conversation.reset()
        note("(forgotten)")
    elif command == "/save" and rest.strip():
        path = Path(rest.strip())
        with atomic_output(path) as stream:
            stream.write(conversation.transcript().encode())
        note(f"(written to {path})")
    elif command == "/system":
        conversation.system = rest.strip()
        conversation.reset()
        note("(a new conversation)")
    else:
        note(_HELP)
    return True
