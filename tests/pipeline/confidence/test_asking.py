"""What of a model's writing is the answer, told by a model that writes what it is given to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from edgepack.edge.llama.chances import TokenChances
from edgepack.edge.llama.engine import GeneratedToken
from edgepack.errors import UsageError
from edgepack.pipeline.confidence.asking import WORD_TOKENS, Asking, ask
from edgepack.pipeline.confidence.questions import Ends, Question

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Writer:
    """A model that writes the same pieces whatever it is asked; a token a piece, the n-th with log p = −n − 1."""

    pieces: tuple[str, ...]
    n_ctx: int = 64
    taken: int = 0

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return [ord(letter) for letter in text]

    def generate(
        self, token_ids: Any, sampling: Any = None, max_tokens: int = -1, *, context_shift: bool = False
    ) -> Iterator[GeneratedToken]:
        assert sampling.temperature == 0
        assert sampling.chances == 10
        for index, piece in enumerate(self.pieces[:max_tokens]):
            self.taken = index + 1
            yield GeneratedToken(index, piece, TokenChances(index, -1.0 - index, ((index, -1.0 - index),)))


def question(answer: str, ends: Ends, prompt: str = "ask") -> Question:
    return Question("q", prompt, answer, (), 0, 0, ends)


def asked(pieces: tuple[str, ...], answer: str, ends: Ends, max_tokens: int = 8) -> tuple[bool, int, float] | None:
    """Whether the answer is right, its tokens, and its least log p; None where there is none."""
    found = ask(Asking(Writer(pieces), None, max_tokens, 64), [question(answer, ends)])  # type: ignore[arg-type]
    if "text" not in found:
        return None
    (one,) = found["text"]
    return one.right, one.tokens, one.seen.features.minimum


@pytest.mark.parametrize(
    ("pieces", "answer", "ends", "expected"),
    [
        ((" cat", " sat", " on"), "cat", "word", (True, 1, -1.0)),
        ((" c", "at", ".", " On"), "cat", "word", (True, 2, -2.0)),
        ((" cat", "s", " sat"), "cat", "word", (False, 2, -2.0)),
        ((" cat",), "cat", "word", (True, 1, -1.0)),
        ((",", " and"), "cat", "word", (False, 1, -1.0)),
        (("\n", "cat", " "), "cat", "word", (True, 2, -2.0)),
        ((" Paris", ".", "\n", "Q"), "Paris", "line", (True, 2, -2.0)),
        ((" Paris.\nQ", "x"), "Paris", "line", (True, 1, -1.0)),
        ((" a", "b", "c", "d", "e", "f", "g", "h", "i"), "abc", "line", (False, 8, -8.0)),
        (("\n", "x"), "x", "line", None),
        ((), "x", "word", None),
    ],
)
def test_an_answer_ends_with_its_word_or_its_line(
    pieces: tuple[str, ...], answer: str, ends: Ends, expected: tuple[bool, int, float] | None
) -> None:
    assert asked(pieces, answer, ends) == expected


@pytest.mark.parametrize("ends", ["word", "line"])
def test_what_is_seen_of_an_answer_does_not_tell_what_the_right_one_is(ends: Ends) -> None:
    pieces = (" ca", "t", " sat", "\n")
    found = [asked(pieces, answer, ends) for answer in ("cat", "a", "something much longer", "cat sat")]
    assert len({one[1:] for one in found if one is not None}) == 1


def test_no_more_is_written_than_shows_that_the_word_has_ended() -> None:
    model = Writer((" cat", " sat", " on", " it"))
    ask(Asking(model, None, 8, 64), [question("cat", "word")])  # type: ignore[arg-type]
    assert model.taken == 2


@pytest.mark.parametrize(("ends", "room"), [("word", WORD_TOKENS), ("line", 20)])
def test_a_question_and_its_answer_must_fit_and_nothing_is_asked_before(ends: Ends, room: int) -> None:
    fits = question("a", ends, "x" * (63 - room))
    assert ask(Asking(Writer((" a",)), None, 20, 64), [fits])["text"][0].right  # type: ignore[arg-type]
    model = Writer((" a",))
    with pytest.raises(UsageError, match=r"^q: question and answer need 64 tokens, the context holds 64: "):
        ask(Asking(model, None, 20, 64), [fits, question("a", ends, "x" * (64 - room))])  # type: ignore[arg-type]
    assert model.taken == 0
    with pytest.raises(UsageError, match="the context holds 40"):
        ask(Asking(model, None, 20, 40), [fits])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="question and answer need 67 tokens"):
        ask(Asking(model, None, 20, 64), [question("a" * 64, ends)])  # type: ignore[arg-type]
