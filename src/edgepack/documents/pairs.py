"""Questions with their answers to learn from: made of headings, and given by a user as JSONL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.documents.lines import lines
from edgepack.errors import UsageError
from edgepack.files.source import parse_object

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgepack.documents.passages import Passage

QUESTIONS, ANSWERS = ("question", "prompt", "instruction"), ("answer", "response", "completion", "output")
"""Names of the two fields, the first that is there is taken."""

_MOST_ANSWER = 600  # characters of an answer that is made of a passage
_MOST_LINE = 1 << 20  # characters of a user's pair
_QUESTION_MARK = re.compile(r"\?\s*$")


@dataclass(frozen=True)
class Pair:
    """A question and what is to be answered.

    Attributes:
        question: as it is asked.
        answer: as it is answered.
    """

    question: str
    answer: str


def pair_of(passage: Passage) -> Pair | None:
    """A question after a section and its beginning as the answer; None for what has no heading or is not the first."""
    if not passage.is_first or not passage.headings:
        return None
    heading = passage.headings[-1]
    answer = _beginning(passage.text)
    if _QUESTION_MARK.search(heading):
        return Pair(heading, answer)
    above = passage.headings[:-1]
    where = f" in {above[0]}" if above else ""
    return Pair(f"What is said about “{heading}”{where}?", answer)


def _beginning(text: str) -> str:
    """Whole paragraphs up to a length, at least one; a long one up to the end of a sentence."""
    paragraphs = text.split("\n\n")
    found = paragraphs[0]
    for paragraph in paragraphs[1:]:
        if len(found) + len(paragraph) > _MOST_ANSWER:
            break
        found = f"{found}\n\n{paragraph}"
    if len(found) <= _MOST_ANSWER:
        return found
    end = max(found.rfind(mark, 0, _MOST_ANSWER) for mark in (". ", "! ", "? "))
    return found[: end + 1] if end > 0 else found[:_MOST_ANSWER]


def read_pairs(path: Path) -> Iterator[Pair]:
    """Pairs of a JSONL file, an object a line, read line by line; empty lines are passed over.

    Raises:
        UsageError: absent, not UTF-8, no pair at all, a line that is no such object or lacks a field; the text names
            file and line.
    """
    found = False
    for number, line in enumerate(lines(path, _MOST_LINE), 1):
        if not line.strip():
            continue
        if len(line) >= _MOST_LINE:
            raise UsageError(f"{path}, line {number}: expected less than {_MOST_LINE} characters")
        yield _read(line, f"{path}, line {number}")
        found = True
    if not found:
        raise UsageError(f"{path}: expected an object of question and answer on each line, got none")


def _read(line: str, where: str) -> Pair:
    value = parse_object(line, where)
    return Pair(_field(value, QUESTIONS, where), _field(value, ANSWERS, where))


def _field(value: dict[str, object], names: tuple[str, ...], where: str) -> str:
    for name in names:
        if name in value:
            text = value[name]
            if not isinstance(text, str) or not text.strip():
                raise UsageError(f"{where}: '{name}': expected a text that is not empty, got {text!r:.80}")
            return text.strip()
    raise UsageError(f"{where}: field '{names[0]}' is missing (or {', '.join(names[1:])})")
