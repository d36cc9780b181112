"""A model as passes left it, for files whose types are none of ggml's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.gguf.types import Value
    from edgepack.model import Checkpoint


@dataclass(frozen=True)
class ChangedModel:
    """A checkpoint as passes that know of no target left it, or as it came.

    Attributes:
        checkpoint: the model.
        metadata: the recipe and every pass' figures, for the file.
        notes: a line each on what was skipped and why.
    """

    checkpoint: Checkpoint
    metadata: Mapping[str, Value] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
