"""Questions made of any text, offline: the next word, among others that the text has about as often."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.errors import CalibrationError
from edgepack.pipeline.confidence.questions import Question

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHOICES = 4
PASSAGE_WORDS = 96  # a prompt's most
LEAST_CONTEXT = 24  # words of a prompt's beginning
_BETWEEN = 4  # words from one question of a passage to the next at least
_MOST_OF_A_PASSAGE = 6  # questions: reading is shared, and so is what makes a passage hard
_WORD = re.compile(r"\S+")
_ASKED = re.compile(r"[a-z]{2,}")  # no names, no numbers: what they are is nobody's to foresee


@dataclass(frozen=True)
class _Passage:
    """Consecutive words of the text: the text itself, and where each word begins and ends in it."""

    text: str
    words: tuple[tuple[int, int], ...]


def cloze_questions(text: str, count: int, seed: int, label: str) -> list[Question]:
    """Questions after the next word.

    A prompt is a passage's beginning as it stands; asked is a word of small letters alone after one space. The wrong
    choices are words of the same class: as often in the text up to a factor of two, and of about the same length.
    Questions of one passage follow one another, so that a model reads its beginning once.

    Args:
        text: any.
        count: how many at most.
        seed: decides which words are asked and which others stand beside them.
        label: names the text in messages.

    Raises:
        CalibrationError: the text gives none.
    """
    chance = random.Random(seed)  # noqa: S311  # which words are asked is no secret
    classes = _classes(text)
    passages = list(_passages(text))
    chance.shuffle(passages)
    found: list[Question] = []
    for group, passage in enumerate(passages):
        if len(found) >= count:
            break
        found += _of_passage(passage, group, classes, chance, label)
    if not found:
        raise CalibrationError(
            f"{label}: expected text with passages of {PASSAGE_WORDS} words that repeat some of their words, got none"
        )
    return found[:count]


def _passages(text: str) -> Iterator[_Passage]:
    words = [found.span() for found in _WORD.finditer(text)]
    for first in range(0, len(words) - PASSAGE_WORDS + 1, PASSAGE_WORDS):
        some = words[first : first + PASSAGE_WORDS]
        start, end = some[0][0], some[-1][1]
        yield _Passage(text[start:end], tuple((left - start, right - start) for left, right in some))


def _class_of(word: str, times: int) -> tuple[int, int]:
    return times.bit_length(), len(word) // 3


def _classes(text: str) -> dict[str, Sequence[str]]:
    """Word → the words of its class, itself among them."""
    times = Counter(word for word in _WORD.findall(text) if _ASKED.fullmatch(word))
    members: dict[tuple[int, int], list[str]] = defaultdict(list)
    for word in sorted(times):
        members[_class_of(word, times[word])].append(word)
    return {word: members[_class_of(word, times[word])] for word in times}


def _of_passage(
    passage: _Passage, group: int, classes: dict[str, Sequence[str]], chance: random.Random, label: str
) -> list[Question]:
    places = [
        index
        for index in range(LEAST_CONTEXT, len(passage.words))
        if passage.words[index][0] == passage.words[index - 1][1] + 1
        and len(classes.get(_spelled(passage, index), ())) >= CHOICES
    ]
    chance.shuffle(places)
    kept: list[int] = []
    for place in places:
        if len(kept) < _MOST_OF_A_PASSAGE and all(abs(place - other) >= _BETWEEN for other in kept):
            kept.append(place)
    return [_question(passage, place, group, classes, chance, label) for place in sorted(kept)]


def _spelled(passage: _Passage, index: int) -> str:
    start, end = passage.words[index]
    return passage.text[start:end]


def _question(
    passage: _Passage, place: int, group: int, classes: dict[str, Sequence[str]], chance: random.Random, label: str
) -> Question:
    answer = _spelled(passage, place)
    others = [word for word in classes[answer] if word != answer]
    choices = [*chance.sample(others, CHOICES - 1), answer]
    chance.shuffle(choices)
    prompt = passage.text[: passage.words[place - 1][1]]
    where = f"{label}, '… {answer}'"
    return Question(where, prompt, answer, tuple(choices), choices.index(answer), group, "word")
