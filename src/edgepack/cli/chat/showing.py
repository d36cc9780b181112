"""What the chat shows: an answer as it comes, its thinking folded, a word when it was cut. It decides nothing."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import note
from edgepack.cli.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgepack.edge.chat.answer import Answer
    from edgepack.edge.chat.conversation import Conversation
    from edgepack.edge.chat.thinking import Piece

_NAMES = 18  # columns


def show_text(text: str) -> None:
    """A piece of what the model says, on stdout; on a terminal without control characters."""
    click.echo(printable(text) if sys.stdout.isatty() else text, nl=False)
    sys.stdout.flush()


def show_pieces(pieces: Iterable[Piece]) -> None:
    """An answer as it comes; its thinking is folded into one line."""
    began = 0.0
    for piece in pieces:
        if piece.thinking and not began:
            began = time.monotonic()
            note("(thinking …)")
        elif not piece.thinking:
            if began > 0:
                note(f"(thought for {time.monotonic() - began:.1f} s; /think shows it)")
                began = -1.0
            show_text(piece.text)
    click.echo()
    if began > 0:
        note(f"(it thought for {time.monotonic() - began:.1f} s and said nothing; /think shows it)")


def show_ending(conversation: Conversation, answer: Answer) -> None:
    """A word where the answer was cut."""
    size = conversation.model.n_ctx
    words = {
        "stopped": "(stopped; /continue goes on)",
        "length": f"(cut: the answer reached its {conversation.max_tokens} tokens; /continue goes on)",
        "context": f"(cut: the context of {size} tokens is full; /continue forgets the oldest turns)",
    }
    if answer.ending in words:
        note(words[answer.ending])


def speed_line(conversation: Conversation, answer: Answer) -> str:
    """Tokens, speed and context of an answer in one line."""
    result = answer.completion
    return (
        f"{result.tokens} tokens, {result.tokens_per_second:.1f} tokens/s, first token after "
        f"{result.first_token_seconds:.2f} s; {conversation.used} of {conversation.model.n_ctx} tokens of context"
    )


def show_info(conversation: Conversation, settings: Iterable[tuple[str, str]]) -> None:
    """The model, what is in the context, how the last answer went and what the next is made with."""
    model = conversation.model
    lines = [
        ("model", model.path.name),
        ("context", f"{conversation.used} of {model.n_ctx} tokens, trained with {model.n_ctx_train}"),
        ("turns", f"{len(conversation.turns) // 2}, and {conversation.forgotten} forgotten"),
    ]
    if conversation.last is not None:
        lines.append(("last answer", speed_line(conversation, conversation.last)))
    show_values([*lines, *settings])


def show_values(lines: Iterable[tuple[str, str]]) -> None:
    """Names and what stands for them, one a line."""
    for name, value in lines:
        note(f"{name:<{_NAMES}} {value}")
