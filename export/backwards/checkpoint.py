"""A GGUF as a checkpoint: its small files in a scratch folder, its weights read from the GGUF where they are asked for.

Writing all of it into a folder of its own is `export.backwards.written`'s.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.export.backwards.opened import RowTensors, original_of
from edgepack.export.backwards.vocabulary import write_tokenizer
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.gguf_source import map_gguf
from edgepack.model import Checkpoint
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator


def read_back(path: Path, folder: Path, *, allow_requantize: bool = True) -> Checkpoint:
    """The checkpoint that a GGUF could have been made of.

    Args:
        path: the GGUF, the first file where it is split.
        folder: an empty one, for config.json and the tokenizer's files; weights are not written.
        allow_requantize: whether quantised tensors may be turned into floats.

    Raises:
        UnsupportedModelError: it cannot be read backwards; the sentence says why.
        TokenizerError: its tokenizer cannot.
        UsageError: quantised tensors without `allow_requantize`.
        GGUFError: truncated, hostile or inconsistent.
    """
    model = map_gguf(path, allow_requantize=allow_requantize)
    original = original_of(model)
    (folder / "config.json").write_text(json.dumps(original.config, indent=1) + "\n", encoding="utf-8")
    write_tokenizer(original.metadata, original.config, folder)
    return Checkpoint(
        folder, original.config, RowTensors(original.tensors), original.notes, origin=path, metadata=original.metadata
    )


@contextmanager
def opened_source(path: Path, *, allow_requantize: bool = True) -> Iterator[Checkpoint]:
    """The checkpoint in a Hugging Face folder, or that of a GGUF, whose scratch folder is gone when the block ends.

    Args:
        path: the folder or file.
        allow_requantize: as `read_back`.

    Raises:
        EdgepackError: as `open_checkpoint` and `read_back`.
    """
    if not path.is_file():
        yield open_checkpoint(path)
        return
    with tempfile.TemporaryDirectory(prefix="edgepack-checkpoint-") as folder:
        yield read_back(path, Path(folder), allow_requantize=allow_requantize)


def scratch_note(checkpoint: Checkpoint) -> str:
    """A line that says what a GGUF was read back into, and how much of the disk that takes meanwhile."""
    size = sum(path.stat().st_size for path in checkpoint.path.rglob("*") if path.is_file())
    name = str(checkpoint.config["architectures"][0])
    where = checkpoint.path.parent
    return (
        f"{checkpoint.origin}: read as a checkpoint of {name}: {format_size(size)} of scratch in {where} while it is"
        " read, weights stay in the GGUF"
    )
