"""Whole passages of documents: a section, or as many of its paragraphs as stay below a length."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edgepack.documents.sections import Section

MOST_CHARACTERS = 1200
"""Of a passage: about 300 tokens, which fit into every model's context."""

_LEAST_CHARACTERS = 20
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=\S)")


@dataclass(frozen=True)
class Passage:
    """Some paragraphs below one heading.

    Attributes:
        document: as `Section.document`.
        headings: as `Section.headings`.
        text: at most `MOST_CHARACTERS`.
        is_first: whether it is the beginning of its section.
    """

    document: str
    headings: tuple[str, ...]
    text: str
    is_first: bool

    @property
    def title(self) -> str:
        """Its headings from the outermost on, or the document's name where it has none."""
        return " > ".join(self.headings) if self.headings else PurePosixPath(self.document).stem.replace("_", " ")

    @property
    def written(self) -> str:
        """Title and text, as they are learnt."""
        return f"{self.title}\n\n{self.text}"


def passages(sections: Iterable[Section]) -> Iterator[Passage]:
    """The passages of sections, in their order; none is cut inside a paragraph that is short enough."""
    last: tuple[str, tuple[str, ...]] | None = None
    for section in sections:
        here = section.document, section.headings
        is_first = here != last
        last = here
        for text in _joined(section.text):
            if len(text) >= _LEAST_CHARACTERS:
                yield Passage(section.document, section.headings, text, is_first)
                is_first = False


def _joined(text: str) -> Iterator[str]:
    kept: list[str] = []
    size = 0
    for paragraph in text.split("\n\n"):
        for part in _cut(paragraph):
            if kept and size + len(part) > MOST_CHARACTERS:
                yield "\n\n".join(kept)
                kept, size = [], 0
            kept.append(part)
            size += len(part) + 2
    if kept:
        yield "\n\n".join(kept)


def _cut(paragraph: str) -> Iterator[str]:
    """A paragraph, in parts of whole sentences where it is too long, and of letters where a sentence is."""
    if len(paragraph) <= MOST_CHARACTERS:
        yield paragraph
        return
    kept = ""
    for sentence in sentences(paragraph):
        for start in range(0, len(sentence), MOST_CHARACTERS):
            part = sentence[start : start + MOST_CHARACTERS]
            if kept and len(kept) + len(part) + 1 > MOST_CHARACTERS:
                yield kept
                kept = ""
            kept = f"{kept} {part}" if kept else part
    if kept:
        yield kept


def sentences(text: str) -> list[str]:
    """Sentences of a paragraph, by their full stops."""
    return [part for part in _SENTENCE.split(text) if part]
