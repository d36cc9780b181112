"""Parts what a model writes into thinking and answer, as it comes; it knows nothing of tokens and of screens.

Models mark their thinking at the beginning of an answer: `<think>…</think>` (DeepSeek-R1, Qwen3, SmolLM3) and its like.
Some templates write the opening mark into the prompt, so that the answer begins inside.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAMES = ("think", "thinking", "reasoning", "seed:think")
_OPENINGS = tuple(f"<{name}>" for name in _NAMES)
_OPEN_AT_END = re.compile(rf"<({'|'.join(_NAMES)})>\s*\Z")


@dataclass(frozen=True)
class Piece:
    """A piece of an answer.

    Attributes:
        text: never empty.
        thinking: whether it belongs to the thinking.
    """

    text: str
    thinking: bool = False


def opened_by(prompt: str) -> str:
    """The mark that ends the thinking which `prompt` begins; empty where it begins none."""
    found = _OPEN_AT_END.search(prompt)
    return f"</{found[1]}>" if found else ""


class ThinkingParter:
    """Takes text as it comes and gives it back in pieces; a mark is never shown, not even a part of it.

    Args:
        closing: the mark that ends the thinking where the prompt has begun it, as `opened_by` tells; else empty.
    """

    def __init__(self, closing: str = "") -> None:
        self._closing = closing
        self._state = "inside" if closing else "before"
        self._held = ""

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain after `text`."""
        self._held += text
        pieces: list[Piece] = []
        while (step := self._step(pieces)) != self._state:
            self._state = step
        return pieces

    def end(self) -> list[Piece]:
        """What is still held, when nothing more comes."""
        held, self._held = self._held, ""
        return [Piece(held, thinking=self._state == "inside")] if held and self._state != "between" else []

    def _step(self, pieces: list[Piece]) -> str:
        """Take what can be taken of the held text, in the state at hand; gives the next state."""
        return {"before": self._before, "inside": self._inside, "between": self._between, "after": self._after}[
            self._state
        ](pieces)

    def _before(self, _pieces: list[Piece]) -> str:
        """Only white space has come: is a mark what follows?"""
        begun = self._held.lstrip()
        for opening in _OPENINGS:
            if begun.startswith(opening):
                self._held = begun[len(opening) :]
                self._closing = f"</{opening[1:]}"
                return "inside"
        undecided = any(opening.startswith(begun) for opening in _OPENINGS)
        return "before" if undecided else "after"

    def _inside(self, pieces: list[Piece]) -> str:
        thought, found, rest = self._held.partition(self._closing)
        kept = 0 if found else _overlap(thought, self._closing)
        if shown := thought[: len(thought) - kept]:
            pieces.append(Piece(shown, thinking=True))
        self._held = rest if found else thought[len(thought) - kept :]
        return "between" if found else "inside"

    def _between(self, _pieces: list[Piece]) -> str:
        """The white space behind the thinking belongs to nobody."""
        self._held = self._held.lstrip()
        return "after" if self._held else "between"

    def _after(self, pieces: list[Piece]) -> str:
        if self._held:
            pieces.append(Piece(self._held))
            self._held = ""
        return "after"


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-n:])), 0)
