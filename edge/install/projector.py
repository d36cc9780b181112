"""Which projector belongs to a model: the one that was given, else the one that its archive brings.

A file that only lies beside a GGUF is not taken, as llama.cpp does not take it either: its users say `--mmproj`.
Opening it is `edge.llama.image`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.edge.llama.check_projector import check_projector
from edgepack.errors import UsageError
from edgepack.gguf import keys

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.edge.install.model_file import ModelFile


def projector_of(source: ModelFile, given: Path | None = None) -> Path | None:
    """The projector's file, checked to give what the model reads; None for a model that only reads.

    Args:
        source: the model, prepared.
        given: a file that was named for it, which comes first.

    Raises:
        UsageError: the file does not exist, is no projector, or was made for another model.
        GGUFError: it is truncated, hostile or inconsistent.
    """
    path = source.projector if given is None else given
    if path is not None:
        check_projector(path, source.header)
    return path


def require_projector(source: ModelFile, projector: Path | None, label: str) -> Path:
    """The projector of a model that is to look at something; raises UsageError where it has none."""
    if projector is None:
        architecture = source.header.get(keys.ARCHITECTURE)
        raise UsageError(
            f"image: '{label}' ({architecture}) has no projector: give --mmproj FILE, a projector that was made for it"
        )
    return projector
