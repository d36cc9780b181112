"""Where a model lies, as commands take it: a path, or the URL of a folder of fsspec's. Opening it is `pipeline`'s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgepack.files.remote import is_url


class Place(click.Path):
    """A path, or the URL of a folder, which stays text."""

    name = "path"

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As `click.Path.convert`."""
        return value if is_url(value) else super().convert(value, param, ctx)
