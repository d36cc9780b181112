"""A text to score, read from a file. Reading is `edgepack.text_file`'s, scoring `pipeline.fidelity`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.edge.fidelity.run import Text
from edgepack.text_file import read_text

if TYPE_CHECKING:
    from pathlib import Path


def text_to_score(path: Path) -> Text:
    """A file's text with its name; raises as `read_text`."""
    return Text(read_text(path), path.name)
