"""PDF by pypdf, a page at a time: its text, under the headings of the document's own outline.

A page that is a picture has no text: it is passed over, and recognising letters is left to other programs.
"""

from __future__ import annotations

import logging
import re
import struct
import zlib
from typing import TYPE_CHECKING, Any

from edgepack.documents.sections import SectionBuilder
from edgepack.errors import DependencyError, UsageError
from edgepack.files.source import open_source
from edgepack.log_level import log_level

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgepack.documents.sections import Section

_MOST_PAGES = 100_000
_MOST_ENTRIES = 10_000  # of an outline
_LOGGED = logging.CRITICAL  # without remarks on files that are read all the same
_BROKEN_WORD = re.compile(r"(\w)-\n(?=[a-z])")
# What pypdf raises on files that are not what they claim to be, beside its own errors.
_BROKEN = (
    ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError, RecursionError, NotImplementedError,
    AssertionError, UnicodeError, EOFError, zlib.error, struct.error,
)  # fmt: skip


def read_pdf(path: Path, document: str) -> Iterator[Section]:
    """Sections of a PDF; a page that cannot be read is passed over.

    Raises:
        UsageError: absent, no PDF, encrypted with a password, or broken before its first page.
        DependencyError: pypdf is not installed.
    """
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise DependencyError(f"PDF: needs {error.name}: pip install edgepack[train]") from error
    with open_source(path) as stream, log_level("pypdf", _LOGGED):
        try:
            reader = PdfReader(stream)
            if reader.is_encrypted and not reader.decrypt(""):
                raise UsageError(f"{path}: expected a PDF that opens without a password")
            count = len(reader.pages)
            outline = _outline(reader)
        except (PyPdfError, *_BROKEN) as error:
            raise UsageError(f"{path}: expected a PDF, got one that cannot be read: {_line(error)}") from None
        if count > _MOST_PAGES:
            raise UsageError(f"{path}: expected at most {_MOST_PAGES} pages, got {count}")
        builder = SectionBuilder(document)
        for number in range(count):
            for level, title in outline.get(number, ()):
                builder.heading(level, title)
            try:
                text = reader.pages[number].extract_text()
            except (PyPdfError, *_BROKEN):
                continue
            for block in _blocks(text):
                builder.block(block)
            yield from builder.take()
        yield from builder.finish()


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs: lines are joined, and words that a line's end has cut."""
    for block in re.split(r"\n\s*\n", _BROKEN_WORD.sub(r"\1", text)):
        yield " ".join(block.split())


def _outline(reader: Any) -> dict[int, list[tuple[int, str]]]:
    """Page, from 0, → headings (level, title) that begin on it."""
    found: dict[int, list[tuple[int, str]]] = {}
    left = [(1, item) for item in reversed(reader.outline)]
    for _ in range(_MOST_ENTRIES):
        if not left:
            break
        level, item = left.pop()
        if isinstance(item, list):
            left += [(level + 1, inner) for inner in reversed(item)]
            continue
        page = reader.get_destination_page_number(item)
        if page is not None and page >= 0:
            found.setdefault(page, []).append((level, str(item.title)))
    return found


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
