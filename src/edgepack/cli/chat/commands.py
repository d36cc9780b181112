"""Lines that begin with a slash: what they do to a conversation. Answers are shown by the session that calls them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.cli.chat import settings
from edgepack.cli.chat.showing import show_info, show_text, show_values
from edgepack.cli.output import note
from edgepack.errors import UsageError
from edgepack.files.claim import claimed_output
from edgepack.files.output import atomic_output
from edgepack.text_file import read_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.cli.chat.session import Session

_COMMAND = re.compile(r"/[a-z?]+\Z")
_SAVED_SETTINGS = ("verbose", "quiet", "history", "nohistory")


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        act: what it does; gets the rest of the line, and gives False when the chat is to end.
        usage: what stands behind it.
        told: one line of help.
    """

    act: Callable[[Session, str], bool | None]
    usage: str
    told: str


def obey(session: Session, line: str) -> bool:
    """Carry out a command; False when the chat is to end.

    Raises:
        EdgepackError: it cannot be done; the chat goes on.
    """
    name, _, rest = line.partition(" ")
    name = _OTHER_NAMES.get(name, name)
    if name not in COMMANDS:
        raise UsageError(f"{name}: no such command; /help lists them, and //… sends a question that begins with /")
    return COMMANDS[name].act(session, rest.strip()) is not False


def is_command(line: str) -> bool:
    """Whether a line is a command, known or not: `/word`. A path or anything else behind a slash is a question."""
    return _COMMAND.match(line.partition(" ")[0]) is not None


def _help(_session: Session, _rest: str) -> None:
    width = max(len(f"{name} {command.usage}") for name, command in COMMANDS.items())
    for name, command in COMMANDS.items():
        note(f"{f'{name} {command.usage}':<{width}}  {command.told}")
    note('"""                 begins and ends a message of several lines; Alt+Enter breaks a line, too')
    note("//…                 a question that begins with a slash")
    note("Ctrl-C stops an answer, Ctrl-D leaves, ↑ brings back earlier questions")


def _regenerate(session: Session, _rest: str) -> None:
    session.show(session.conversation.again())


def _edit(session: Session, rest: str) -> None:
    turns = session.conversation.turns
    if not turns:
        raise UsageError("/edit: there is no question yet")
    if not rest and not session.reader.edits:
        raise UsageError("/edit: expected the new question behind it")
    text = rest or session.edited(turns[-2]["content"])
    if text:
        session.show(session.conversation.again(text))


def _continue(session: Session, _rest: str) -> None:
    last = session.conversation.last
    if last is not None and last.ending == "end":
        raise UsageError("/continue: the last answer came to its end")
    session.show(session.conversation.onward())


def _set(session: Session, rest: str) -> None:
    words = rest.removeprefix("parameter ").split()
    if not words:
        show_values([*settings.values(session.conversation), ("verbose", "on" if session.verbose else "off")])
    elif words[0] == "system":
        _system(session, rest.partition("system")[2].strip())
    elif len(words) == 1 and words[0] in _SAVED_SETTINGS:
        _switch(session, words[0])
    elif len(words) == 2:
        name = settings.change(session.conversation, *words)
        note(f"({name} is {dict(settings.values(session.conversation))[name]})")
    else:
        raise UsageError(f"/set: expected a name and a value; names: {', '.join(settings.SETTINGS)}")


def _switch(session: Session, word: str) -> None:
    if word in ("verbose", "quiet"):
        session.verbose = word == "verbose"
    else:
        session.reader.remember(word == "history")
    note(f"({word})")


def _system(session: Session, rest: str) -> None:
    conversation = session.conversation
    if not rest:
        note(conversation.system or "(no system message)")
        return
    conversation.system = rest.strip('"').strip()
    note("(from the next answer on)" if conversation.system else "(no system message)")


def _clear(session: Session, _rest: str) -> None:
    session.conversation.reset()
    note("(forgotten)")


def _save(session: Session, rest: str) -> None:
    if not rest:
        raise UsageError("/save: expected a file's name behind it")
    path = Path(rest).expanduser()
    with claimed_output(path, inputs=[session.conversation.model.path], force=True):
        if os.path.lexists(path):
            _check_is_transcript(path)
        with atomic_output(path) as stream:
            stream.write(session.conversation.transcript().encode())
    note(f"(written to {path})")


def _check_is_transcript(path: Path) -> None:
    from edgepack.edge.chat.transcript import read_transcript

    try:
        read_transcript(read_text(path))
    except UsageError:
        raise UsageError(f"/save: {path} exists and is no conversation: it is not replaced") from None


def _load(session: Session, rest: str) -> None:
    if not rest:
        raise UsageError("/load: expected a file's name behind it")
    conversation = session.conversation
    conversation.load(read_text(Path(rest).expanduser()))
    note(f"(questions and answers: {len(conversation.turns) // 2}; the last one:)")
    if conversation.turns:
        show_text(f"{conversation.turns[-1]['content']}\n")


def _info(session: Session, _rest: str) -> None:
    show_info(session.conversation, settings.values(session.conversation))


def _think(session: Session, _rest: str) -> None:
    turns = session.conversation.turns
    thinking = turns[-1].get("reasoning_content") if turns else None
    show_text(f"{thinking.strip()}\n" if thinking else "(no thinking)\n")


def _leave(_session: Session, _rest: str) -> bool:
    return False


COMMANDS: dict[str, Command] = {
    "/regen": Command(_regenerate, "", "another answer to the last question"),
    "/edit": Command(_edit, "[TEXT]", "another question in the last one's place"),
    "/continue": Command(_continue, "", "go on with an answer that was cut"),
    "/set": Command(_set, "[NAME VALUE]", "temperature, top_p, max_tokens, seed …; verbose, quiet, nohistory"),
    "/system": Command(_system, "[TEXT]", 'the system message; "" takes it away'),
    "/think": Command(_think, "", "what the model thought before its last answer"),
    "/info": Command(_info, "", "model, context, speed and settings"),
    "/save": Command(_save, "FILE", "write the conversation as JSON"),
    "/load": Command(_load, "FILE", "go on with a saved conversation"),
    "/clear": Command(_clear, "", "or /reset: forget the conversation (the system message stays)"),
    "/help": Command(_help, "", "this list"),
    "/bye": Command(_leave, "", "leave"),
}
_OTHER_NAMES = {"/reset": "/clear", "/?": "/help", "/exit": "/bye", "/quit": "/bye", "/regenerate": "/regen"}
