"""The knowledge test counts what a model says: by likelihood among choices, and written, normalised."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgepack.edge.fidelity.tasks.knowledge import begins_with, knowledge_test, normalised
from edgepack.edge.fidelity.tasks.tasks import ChoiceItem, MatchItem

TEXTS = ["<s>", "It", " is", " red", " blue", " Red", ".", " green", " Blue", "!"]


class Parrot:
    """Says one word after every beginning; its tokens are whole words."""

    label, vocabulary, context_limit = "parrot", len(TEXTS), 64

    def __init__(self, word: str) -> None:
        self._word = TEXTS.index(word)
        self.tokenizer: Any = SimpleNamespace(tokenize=self._tokenize, piece=lambda token: TEXTS[token], bos=0)

    def _tokenize(self, text: str) -> Any:
        found = [0]
        while text:
            token = max((each for each in TEXTS if text.startswith(each)), key=len)
            found.append(TEXTS.index(token))
            text = text[len(token) :]
        return np.array(found, np.int32)

    def score(self, chunk: Any) -> Any:
        logits = np.zeros((chunk.scored, len(TEXTS)), np.float32)
        logits[:, self._word] = 5
        return logits

    def continue_greedily(self, _tokens: Any, count: int) -> Any:
        return np.array([self._word] + [TEXTS.index(".")] * (count - 1), np.int32)


ITEMS = [
    ("term", ChoiceItem("It is", ("red", "blue", "green"), 1)),
    ("term", ChoiceItem("It is", ("red", "blue", "green"), 0)),
    ("given", MatchItem("It is", "Blue!")),
]


def test_right_is_the_likeliest_choice_and_what_is_written() -> None:
    blue, red = (knowledge_test(ITEMS, Parrot(word)) for word in (" blue", " Red"))  # type: ignore[arg-type]
    assert blue.likely == {"term": (True, False), "given": (True,)}
    assert blue.written == {"term": (True, False), "given": (True,)}
    assert blue.share() == pytest.approx(2 / 3)
    assert blue.share("term") == 0.5
    assert blue.chance == {"term": pytest.approx(1 / 3), "given": 0.0}
    assert red.written["term"] == (False, True)
    held = red.against(blue)
    assert (held.lost, held.gained) == (0, 2)


@pytest.mark.parametrize(
    ("text", "wanted", "right"),
    [
        ("The  Harbour, of", "harbour", True), (" 1,734.", "1 734", True), ("1734", "17", False), ("", "a word", False),
        ("ﬁne day", "Fine day", True), ("anything", "the", False),
    ],
)  # fmt: skip
def test_answers_are_compared_normalised_and_by_whole_words(text: str, wanted: str, right: bool) -> None:
    assert begins_with(text, wanted) is right
    assert normalised(normalised(text)) == normalised(text)
