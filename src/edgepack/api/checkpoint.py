"""`edgepack.checkpoint`: a GGUF as a folder that transformers loads; the work is `pipeline.checkpoint`'s."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.export.backwards.written import AUTO
from edgepack.pipeline.checkpoint import WrittenCheckpoint, write_checkpoint
from edgepack.progress import silent

if TYPE_CHECKING:
    from edgepack.api.values import FilePath
    from edgepack.progress import Progress


def checkpoint(
    model: FilePath, output: FilePath, *, dtype: str = AUTO, dry_run: bool = False, progress: Progress = silent
) -> WrittenCheckpoint:
    """Write a GGUF as the Hugging Face folder that it could have been made of.

    Names, rows and settings are those of the export read backwards, and held against the file: an architecture that
    cannot be read so is refused by its reason. Weights are read and written one tensor at a time.

    Args:
        model: the GGUF, the first file where it is split.
        output: the folder, which must not be there yet.
        dtype: `auto` keeps every value (quantised weights become float32), `float32`, `float16` or `bfloat16`.
        dry_run: write nothing.
        progress: told the bytes written.

    Raises:
        UnsupportedModelError: it cannot be read backwards.
        TokenizerError: its tokenizer cannot.
        UsageError: the folder is there already.
        DependencyError: torch or transformers is not installed.
    """
    return write_checkpoint(Path(model), Path(output), dtype=dtype, dry_run=dry_run, progress=progress)
