"""Types that the API's signatures share; they hold no behaviour."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from edgepack.pipeline.outline import Json

FilePath: TypeAlias = Union[str, "os.PathLike[str]"]
ImageFile: TypeAlias = str | Path | bytes
JsonObject: TypeAlias = "dict[str, Json]"


def optional_path(path: FilePath | None) -> Path | None:
    """`path` as a Path, None left as it is."""
    return None if path is None else Path(path)


def paths(files: Iterable[FilePath]) -> tuple[Path, ...]:
    """Every one as a Path."""
    return tuple(Path(file) for file in files)
