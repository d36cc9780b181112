"""Held-out questions about documents, written before anything is learnt, in the form that `edgepack evaluate` reads.

Two kinds: the *term* that a sentence of the documents goes on with, among terms of the same class from elsewhere in
them (a number among numbers, a name among names), and the *passage* that stands below a heading, among passages from
below others. How a model does on them is measured in `edge.fidelity.tasks.knowledge`.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.documents.passages import sentences
from edgepack.errors import CalibrationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgepack.documents.passages import Passage

CHOICES = 4
TERM, PASSAGE = "term", "passage"

_MOST_SAMPLED = 4000  # passages that questions are made of, however many there are
_LEAST_WORDS = 4  # of a sentence before the term that is asked
_MOST_ENDING = 200  # characters of a passage that is a choice
_NUMBER = re.compile(r"(?<![\w.,])\d[\d.,:/]*\d(?!\w)|(?<![\w.,-])\d(?![\w.,])")
_NAME = re.compile(r"(?<=[a-z,;:] )[A-Z][a-z][\w'-]+(?: [A-Z][a-z][\w'-]+){0,2}")


@dataclass(frozen=True)
class HeldOut:
    """A question with choices.

    Attributes:
        kind: `term` or `passage`.
        context: what comes before.
        endings: the choices, each goes on after one space.
        label: index of the right one.
        document: where the answer stands.
    """

    kind: str
    context: str
    endings: tuple[str, ...]
    label: int
    document: str

    def json(self) -> dict[str, object]:
        """A line of the file."""
        return {
            "ctx": self.context, "endings": list(self.endings), "label": self.label, "kind": self.kind,
            "document": self.document,
        }  # fmt: skip


def sampled(found: Iterable[Passage], seed: int, most: int = _MOST_SAMPLED) -> list[Passage]:
    """At most `most` of the passages, each with the same chance, in their order; one is in memory beside those."""
    chance = random.Random(seed)  # noqa: S311  # which passages are asked about is no secret
    kept: list[tuple[int, Passage]] = []
    for number, passage in enumerate(found):
        if len(kept) < most:
            kept.append((number, passage))
        elif (place := chance.randrange(number + 1)) < most:
            kept[place] = (number, passage)
    return [passage for _number, passage in sorted(kept, key=lambda each: each[0])]


def held_out_questions(some: Sequence[Passage], count: int, seed: int) -> list[HeldOut]:
    """Questions about passages: terms and passages alternately, as far as there are of both.

    Args:
        some: the passages.
        count: how many questions at most.
        seed: decides which, and what stands beside the right answer.

    Raises:
        CalibrationError: the passages give none.
    """
    chance = random.Random(seed)  # noqa: S311
    terms, whole = _terms(some, chance), _whole(some, chance)
    chance.shuffle(terms)
    chance.shuffle(whole)
    half = max(count - len(whole), (count + 1) // 2)
    chosen = terms[:half]
    chosen += whole[: count - len(chosen)]
    if not chosen:
        raise CalibrationError(
            f"documents: expected passages to ask about (numbers or names in sentences, or {CHOICES} headings), got"
            f" {len(some)} passages without"
        )
    return chosen


def _terms(some: Sequence[Passage], chance: random.Random) -> list[HeldOut]:
    """For each passage a question after one term of it, where it has one that others can stand beside."""
    places = [(passage, *found) for passage in some for found in _candidates(passage)]
    by_class: dict[tuple[str, int], list[str]] = defaultdict(list)
    for _passage, _before, term in places:
        by_class[_class_of(term)].append(term)
    classes = {key: sorted(set(terms)) for key, terms in by_class.items()}
    by_passage: dict[int, list[HeldOut]] = defaultdict(list)
    for passage, before, term in places:
        others = [other for other in classes[_class_of(term)] if other not in passage.text]
        if len(others) < CHOICES - 1:
            others += _other_numbers(term, passage.text, chance)
        if len(others) < CHOICES - 1 or term in passage.title or term in before:
            continue
        endings = [*chance.sample(others, CHOICES - 1), term]
        chance.shuffle(endings)
        context = f"From “{passage.title}”: {before}"
        by_passage[id(passage)].append(
            HeldOut(TERM, context, tuple(endings), endings.index(term), passage.document)
        )  # fmt: skip
    return [chance.choice(questions) for questions in by_passage.values()]


def _candidates(passage: Passage) -> list[tuple[str, str]]:
    """(beginning of a sentence, the term that comes next)."""
    found = []
    for paragraph in passage.text.split("\n\n"):
        for sentence in sentences(" ".join(paragraph.split())):
            for match in (*_NUMBER.finditer(sentence), *_NAME.finditer(sentence)):
                before = sentence[: match.start()].rstrip()
                if len(before.split()) >= _LEAST_WORDS and sentence[: match.start()].endswith(" "):
                    found.append((before, match[0]))
    return found


def _class_of(term: str) -> tuple[str, int]:
    """Numbers of as many digits, names of as many words."""
    return ("number", len(term)) if term[0].isdigit() else ("name", term.count(" "))


def _other_numbers(term: str, text: str, chance: random.Random) -> list[str]:
    """Numbers of the same form that do not stand in the text."""
    if not term[0].isdigit():
        return []
    found: set[str] = set()
    for _ in range(50):
        digits = [chance.choice("123456789") if at == 0 else chance.choice("0123456789") for at in range(len(term))]
        other = "".join(new if old.isdigit() else old for old, new in zip(term, digits, strict=True))
        if other not in text:
            found.add(other)
    return sorted(found)


def _whole(some: Sequence[Passage], chance: random.Random) -> list[HeldOut]:
    """For each section a question after its beginning, among beginnings of other sections."""
    firsts = [passage for passage in some if passage.is_first and passage.headings]
    begins = {passage.title: _beginning(passage.text) for passage in firsts}
    if len(set(begins.values())) < CHOICES:
        return []
    found = []
    for passage in firsts:
        own = begins[passage.title]
        others = sorted({begin for title, begin in begins.items() if title != passage.title and begin != own})
        if len(others) < CHOICES - 1:
            continue
        endings = [*chance.sample(others, CHOICES - 1), own]
        chance.shuffle(endings)
        context = f"Which text stands below “{passage.title}”? This one:"
        found.append(HeldOut(PASSAGE, context, tuple(endings), endings.index(own), passage.document))
    return found


def _beginning(text: str) -> str:
    """Of a passage, up to the end of a word."""
    text = " ".join(text.split())
    return text if len(text) <= _MOST_ENDING else text[:_MOST_ENDING].rpartition(" ")[0]
