"""Plain text: paragraphs between empty lines; a short line alone that looks like one is a heading."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edgepack.documents.lines import lines
from edgepack.documents.sections import MOST_CHARACTERS, SectionBuilder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgepack.documents.sections import Section

_MOST_HEADING = 80
# A number or a word for a part in front, or capitals throughout, and no full stop at the end.
_NUMBERED = re.compile(
    r"^(?:(?:chapter|part|section|book|appendix)\s+\S{1,12}\b|\d{1,3}(?:\.\d{1,3}){0,4}\.?\s+(?=\S))", re.IGNORECASE
)


def read_plain(path: Path, document: str) -> Iterator[Section]:
    """Sections of a UTF-8 text file; raises as `lines`."""
    builder = SectionBuilder(document)
    paragraph: list[str] = []
    size = 0
    for line in lines(path):
        if line.strip():
            paragraph.append(line.strip())
            size += len(line)
            if size < MOST_CHARACTERS:
                continue
        _end(builder, paragraph)
        paragraph, size = [], 0
        yield from builder.take()
    _end(builder, paragraph)
    yield from builder.finish()


def _end(builder: SectionBuilder, paragraph: list[str]) -> None:
    if len(paragraph) == 1 and _is_heading(paragraph[0]):
        builder.heading(1, paragraph[0])
    else:
        builder.block(" ".join(paragraph))


def _is_heading(line: str) -> bool:
    if not 3 <= len(line) <= _MOST_HEADING or line[-1] in ".,;!":
        return False
    return bool(_NUMBERED.match(line)) or (line.isupper() and sum(letter.isalpha() for letter in line) >= 3)
