"""HTML as it is read: what stands in headings, paragraphs, lists and cells, fed piece by piece to Python's own parser.

A tree of the whole page, as other parsers build it, would take many times the file's length.
"""

from __future__ import annotations

import codecs
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

from edgepack.documents.lines import text_pieces
from edgepack.documents.sections import MOST_CHARACTERS, SectionBuilder
from edgepack.errors import UsageError
from edgepack.files.source import open_source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgepack.documents.sections import Section

_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_SILENT = frozenset({"script", "style", "nav", "template", "svg", "noscript", "iframe", "select", "button", "textarea"})
_BLOCKS = frozenset({
    "address", "article", "aside", "blockquote", "body", "br", "caption", "dd", "details", "div", "dl", "dt",
    "figcaption", "figure", "footer", "form", "header", "hr", "li", "main", "ol", "p", "pre", "section", "summary",
    "table", "tbody", "thead", "title", "tr", "ul",
})  # fmt: skip
_CELLS = frozenset({"td", "th"})
_MOST_TAG = 1 << 20  # characters of one tag; more is no page, and each feed would read them again
_HEAD = 4096  # bytes in which a page says its encoding
_CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_ENTITY_FREE = "\N{NO-BREAK SPACE}"


def read_html(path: Path, document: str) -> Iterator[Section]:
    """Sections of a page; its `<title>` is the first heading.

    Raises:
        UsageError: absent, not in the encoding that it states (UTF-8 where it states none), or a tag without end.
    """
    parser = _Reader(SectionBuilder(document))
    for piece in text_pieces(path, _encoding(path)):
        parser.feed(piece)
        if len(parser.rawdata) > _MOST_TAG:
            raise UsageError(f"{path}: expected tags of at most {_MOST_TAG} characters, one has no end")
        yield from parser.builder.take()
    parser.close()
    parser.end_block()
    yield from parser.builder.finish()


def _encoding(path: Path) -> str:
    with open_source(path) as stream:
        head = stream.read(_HEAD)
    for mark, name in ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if head.startswith(mark):
            return name
    stated = _CHARSET.search(head)
    if stated is None or head.startswith(codecs.BOM_UTF8):
        return "utf-8"
    name = stated[1].decode("ascii").lower()
    try:
        "a".encode(name)  # refuses what is no encoding of text, such as `zlib`
    except (LookupError, ValueError):
        return "utf-8"
    return "utf-8" if name.replace("_", "-") in ("utf8", "utf-8") else name


class _Reader(HTMLParser):
    """Feeds a builder."""

    def __init__(self, builder: SectionBuilder) -> None:
        super().__init__(convert_charrefs=True)
        self.builder = builder
        self._text: list[str] = []
        self._size = self._silent = self._level = 0
        self._pre = self._title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """As HTMLParser's."""
        if tag in _SILENT:
            self._silent += 1
        elif tag in _HEADINGS:
            self.end_block()
            self._level = _HEADINGS[tag]
        elif tag in _BLOCKS:
            self.end_block()
            self._pre, self._title = tag == "pre", tag == "title"
        elif tag in _CELLS and any(part.strip() for part in self._text):
            self._text.append(" | ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """As HTMLParser's; `<svg/>` opens nothing."""
        if tag not in _SILENT:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        """As HTMLParser's."""
        if tag in _SILENT:
            self._silent = max(0, self._silent - 1)
        elif tag in _HEADINGS or tag in _BLOCKS:
            self.end_block()

    def handle_data(self, data: str) -> None:
        """As HTMLParser's."""
        if self._silent:
            return
        self._text.append(data)
        self._size += len(data)
        if self._size > MOST_CHARACTERS and not self._level:
            self._write()

    def end_block(self) -> None:
        """What was open ends."""
        self._write()
        self._level, self._pre, self._title = 0, False, False

    def _write(self) -> None:
        text = "".join(self._text).replace(_ENTITY_FREE, " ")
        self._text, self._size = [], 0
        if not self._pre:
            text = " ".join(text.split())
        if self._title:
            self.builder.heading(0, text)
        elif self._level:
            self.builder.heading(self._level, text)
        else:
            self.builder.block(text)
