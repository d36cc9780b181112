"""Markdown by markdown-it-py: headings, paragraphs, lists, tables and code as a reader sees them, without marks.

A file is parsed in stretches that end before a heading or at an empty line, so that its length does not count.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from edgepack.documents.lines import lines
from edgepack.documents.sections import SectionBuilder
from edgepack.errors import DependencyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgepack.documents.sections import Section

_ENOUGH, _MOST = 1 << 18, 1 << 20  # characters of a stretch: from where it may end, and where it must
_MOST_FRONT_MATTER = 200  # lines
_HEADING = re.compile(r"^ {0,3}#{1,6}(\s|$)")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")


def read_markdown(path: Path, document: str) -> Iterator[Section]:
    """Sections of a UTF-8 Markdown file.

    Raises:
        UsageError: as `lines`.
        DependencyError: markdown-it-py is not installed.
    """
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise DependencyError(f"Markdown: needs {error.name}: pip install edgepack[train]") from error
    parser = MarkdownIt("commonmark").enable("table")
    builder = SectionBuilder(document)
    for stretch in _stretches(path):
        _take_in(parser.parse(stretch), builder)
        yield from builder.take()
    yield from builder.finish()


def _stretches(path: Path) -> Iterator[str]:
    """The text in pieces that a parser understands each for itself."""
    kept: list[str] = []
    size, fence = 0, ""
    for line in _without_front_matter(path):
        mark = _FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        ends = not fence and (bool(_HEADING.match(line)) or not line.strip())
        if (size >= _ENOUGH and ends) or size >= _MOST:
            yield "\n".join(kept)
            kept, size = [], 0
        kept.append(line)
        size += len(line) + 1
    yield "\n".join(kept)


def _without_front_matter(path: Path) -> Iterator[str]:
    """The lines; what stands between two `---` at the very beginning is no text, and a `---` alone is a rule."""
    every = lines(path)
    held: list[str] = []
    for line in every:
        held.append(line)
        if held[0].strip() != "---" or len(held) > _MOST_FRONT_MATTER:
            break
        if len(held) > 1 and line.strip() in ("---", "..."):
            held = []
            break
    yield from held
    yield from every


def _take_in(tokens: list[Any], builder: SectionBuilder) -> None:
    level = 0
    cells: list[str] | None = None
    for token in tokens:
        if token.type == "heading_open":
            level = int(token.tag[1:])
        elif token.type == "heading_close":
            level = 0
        elif token.type == "tr_open":
            cells = []
        elif token.type == "tr_close":
            builder.block(" | ".join(cells or []))
            cells = None
        elif token.type in ("fence", "code_block"):
            builder.block(token.content)
        elif token.type == "inline":
            text = _spoken(token.children or [])
            if level:
                builder.heading(level, text)
            elif cells is not None:
                cells.append(text)
            else:
                builder.block(text)


def _spoken(children: list[Any]) -> str:
    """Inline tokens as text."""
    parts = {"text": None, "code_inline": None, "text_special": None, "softbreak": " ", "hardbreak": "\n"}
    return "".join(
        child.content if parts[child.type] is None else str(parts[child.type])
        for child in children
        if child.type in parts
    )
