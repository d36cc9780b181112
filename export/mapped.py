"""A model as a GGUF will hold it, before types are chosen: metadata, tensors by their GGUF names, key facts.

Every kind of source becomes one of these (`mapped_model`, `gguf_source`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgepack.files.source import WatchedFiles

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.export.rows import Rows
    from edgepack.gguf.types import Value
    from edgepack.quant.types.mixtures import ModelFacts


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
