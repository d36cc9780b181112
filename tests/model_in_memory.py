"""A model at a URL for tests: the files of a folder in fsspec's memory."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def model_in_memory(folder: Path, root: str) -> Iterator[str]:
    """The URL of a copy of the folder's files below `root`, while the block lasts."""
    system = pytest.importorskip("fsspec").filesystem("memory")
    for path in folder.iterdir():
        if path.is_file():
            system.pipe_file(f"/{root}/{folder.name}/{path.name}", path.read_bytes())
    yield f"memory://{root}/{folder.name}"
    system.rm(f"/{root}", recursive=True)
