"""A model as a GGUF will hold it, before types are chosen: metadata, tensors by their GGUF names, key facts.

Every kind of source becomes one of these (`mapped_model`, `gguf_source`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from edgepack.errors import CheckpointError
from edgepack.export.naming import Size
from edgepack.export.rows import SourceRows
from edgepack.files.source import WatchedFiles

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.export.rows import Rows
    from edgepack.gguf.types import Value
    from edgepack.quant.types.mixtures import ModelFacts

_INTEGERS = frozenset({"i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8", "bool"})


@dataclass(frozen=True)
class MappedModel:
    """What is exported.

    Attributes:
        label: names the source in messages.
        metadata: every key but `general.file_type` and `general.quantization_version`.
        tensors: GGUF name → rows.
        facts: what the choice of types asks.
        sources: the files that weights come from.
        notes: limits that the user should know of, a line each.
        kept: tensors that keep the type in which the checkpoint stores them, unless a pattern names another.
    """

    label: str
    metadata: Mapping[str, Value]
    tensors: Mapping[str, Rows]
    facts: ModelFacts
    sources: WatchedFiles = field(default_factory=WatchedFiles)
    notes: tuple[str, ...] = ()
    kept: frozenset[str] = frozenset()


def refuse_integers(tensors: Mapping[str, Rows]) -> None:
    """Raise CheckpointError for a weight of whole numbers: without a quantisation in config.json it means nothing."""
    for rows in tensors.values():
        if isinstance(rows, SourceRows) and rows.dtype in _INTEGERS:
            raise CheckpointError(
                f"tensor '{rows.name}': expected floats, got {rows.dtype}: config.json has no quantization_config that"
                " says what they mean"
            )


def size_of(tensors: Mapping[str, Rows], n_experts: int = 0) -> Size:
    """Parameters of a model's tensors, by GGUF names."""
    counts = {name: prod(rows.shape) for name, rows in tensors.items()}
    return Size(sum(counts.values()), sum(n for name, n in counts.items() if "_exps." in name), n_experts)
