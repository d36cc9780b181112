"""A GGUF becomes a Hugging Face folder: read backwards, planned, written. Reading backwards is `export.backwards`'s."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.export.backwards.checkpoint import opened_source
from edgepack.export.backwards.written import AUTO, check_folder, plan_folder, write_folder
from edgepack.progress import silent

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.progress import Progress


@dataclass(frozen=True)
class WrittenCheckpoint:
    """A checkpoint that was written, or with a dry run would be.

    Attributes:
        output: the folder.
        bytes: of its weights.
        seconds: wall time.
        model_class: transformers' class.
        dtype: torch's name of the type that holds all weights.
        tensors: tensor → its type, as torch calls it, and shape.
        notes: a line for each thing that the GGUF does not have.
    """

    output: Path
    bytes: int
    seconds: float
    model_class: str
    dtype: str
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]
    notes: tuple[str, ...]


def write_checkpoint(
    source: Path, output: Path, *, dtype: str = AUTO, dry_run: bool = False, progress: Progress = silent
) -> WrittenCheckpoint:
    """Write the checkpoint that a GGUF could have been made of.

    Args:
        source: the GGUF.
        output: the folder; it must not be there yet.
        dtype: as `plan_folder`.
        dry_run: write nothing.
        progress: told the bytes written.

    Raises:
        UsageError: not a file, or the folder is there already.
        EdgepackError: as `read_back` and `write_folder`.
    """
    started = time.monotonic()
    if not source.is_file():
        raise UsageError(
            f"checkpoint: expected a GGUF, got {'a folder' if source.is_dir() else 'nothing there'}: '{source}'"
        )
    check_folder(output)
    with opened_source(source) as checkpoint:
        plan = plan_folder(checkpoint.tensors, dtype)
        if not dry_run:
            write_folder(checkpoint, output, plan, progress=progress)
        specs = checkpoint.tensors.specs
        return WrittenCheckpoint(
            output, plan.bytes, time.monotonic() - started, str(checkpoint.config["architectures"][0]), plan.dtype,
            tuple((name, kind, specs[name].shape) for name, kind in plan.dtypes.items()), checkpoint.notes,
        )  # fmt: skip
