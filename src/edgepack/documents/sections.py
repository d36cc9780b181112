"""A section of a document: what stands below its headings. Readers of formats build them here, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_CHARACTERS = 1 << 16
"""Of a section; a longer one comes in parts under the same headings."""

_MOST_TITLE = 200


@dataclass(frozen=True)
class Section:
    """Text below headings.

    Attributes:
        document: the file's path below its folder, with forward slashes.
        headings: from the document's own title down; empty before the first one.
        text: paragraphs with an empty line between them.
    """

    document: str
    headings: tuple[str, ...]
    text: str


@dataclass
class SectionBuilder:
    """Takes headings and blocks in the order of a document, and gives its sections.

    Attributes:
        document: as `Section.document`.
    """

    document: str
    _stack: list[tuple[int, str]] = field(default_factory=list)
    _blocks: list[str] = field(default_factory=list)
    _size: int = 0
    _ready: list[Section] = field(default_factory=list)

    def heading(self, level: int, title: str) -> None:
        """A heading begins: those of its level and below end. An empty one is passed over."""
        title = " ".join(title.split())[:_MOST_TITLE].strip()
        if not title:
            return
        self._close()
        while self._stack and self._stack[-1][0] >= level:
            self._stack.pop()
        self._stack.append((level, title))

    def block(self, text: str) -> None:
        """A paragraph, a list's item, a row of a table or some code."""
        text = text.strip()
        while text:
            part, text = text[:MOST_CHARACTERS], text[MOST_CHARACTERS:]
            if self._size + len(part) > MOST_CHARACTERS:
                self._close()
            self._blocks.append(part)
            self._size += len(part)

    def take(self) -> list[Section]:
        """The sections that have ended since the last call."""
        found, self._ready = self._ready, []
        return found

    def finish(self) -> list[Section]:
        """The sections that are left when the document has ended."""
        self._close()
        return self.take()

    def _close(self) -> None:
        text = "\n\n".join(self._blocks)
        if any(letter.isalnum() for letter in text):
            self._ready.append(Section(self.document, tuple(title for _level, title in self._stack), text))
        self._blocks, self._size = [], 0
