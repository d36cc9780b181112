"""A folder of documents, file by file in the order of their names: its sections, and what was passed over and why.

A link that leads out of the folder is not followed: what is taught is what lies in it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.documents.html import read_html
from edgepack.documents.markdown import read_markdown
from edgepack.documents.pdf import read_pdf
from edgepack.documents.plain import read_plain
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgepack.documents.sections import Section

READERS: dict[str, Callable[[Path, str], Iterator[Section]]] = {
    ".md": read_markdown, ".markdown": read_markdown, ".txt": read_plain, ".text": read_plain, ".rst": read_plain,
    ".html": read_html, ".htm": read_html, ".xhtml": read_html, ".pdf": read_pdf,
}  # fmt: skip
"""End of a file's name → what reads it."""

_MOST_FILES = 100_000


@dataclass
class Documents:
    """The documents of a folder; each reading begins anew.

    Args:
        folder: of the documents, and folders below it.

    Attributes:
        passed_over: a line for each file that is no document of a kind that is read, a link out, or without text;
            known after a whole reading.
    """

    folder: Path
    passed_over: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            got = "a file" if self.folder.is_file() else "nothing there"
            raise UsageError(f"documents '{self.folder}': expected a folder, got {got}")

    def sections(self) -> Iterator[Section]:
        """Every section, file by file.

        Raises:
            UsageError: no text in any file, or a document that cannot be read; the text names it.
            DependencyError: a reader's package is not installed.
        """
        self.passed_over, found = [], 0
        for path, name in self._files():
            before = found
            for section in READERS[path.suffix.lower()](path, name):
                found += 1
                yield section
            if found == before:
                self.passed_over.append(f"{name}: no text in it")
        if not found:
            kinds = ", ".join(READERS)
            told = f": {self.passed_over[0]}" if self.passed_over else ""
            raise UsageError(f"documents '{self.folder}': expected a folder with text in files of {kinds}{told}")

    def _files(self) -> Iterator[tuple[Path, str]]:
        root, count = self.folder.resolve(), 0
        for place, folders, names in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(each for each in names if not each.startswith(".")):
                path = Path(place) / name
                shown = path.relative_to(self.folder).as_posix()
                count += 1
                if count > _MOST_FILES:
                    raise UsageError(f"documents '{self.folder}': expected at most {_MOST_FILES} files")
                if not path.resolve().is_relative_to(root):
                    self.passed_over.append(f"{shown}: a link out of the folder is not followed")
                elif path.suffix.lower() not in READERS:
                    self.passed_over.append(f"{shown}: no document of a kind that is read")
                elif not path.is_file():
                    self.passed_over.append(f"{shown}: no plain file")
                else:
                    yield path, shown
