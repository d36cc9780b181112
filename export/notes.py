"""What an export says besides what it writes: limits that the user should know of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.export.config import ModelConfig
    from edgepack.export.family import Family

    from edgepack.gguf.types import Value
    from edgepack.model import TensorSource


def limits(family: Family, config: ModelConfig, metadata: Mapping[str, Value], source: TensorSource) -> tuple[str, ...]:
    """One line for each thing that the model has and the file has not.

    Args:
        family: of the model.
        config: with the family's defaults.
        metadata: as it will be written.
        source: the checkpoint's tensors.
    """
    found = []
    published, written = config.get("max_position_embeddings"), metadata[f"{family.name}.context_length"].value
    if isinstance(published, int) and written < published:
        found.append(
            f"context: {written} tokens instead of {published}: the model's attention slides over {written},"
            " llama.cpp's does not, and the two agree up to there"
        )
    if family.nested:
        left_out = sum(any(re.search(pattern, name) for pattern in family.unused) for name in source.specs)
        found.append(
            f"{left_out} tensors of other modalities are left out: this is the part that reads and writes text"
        )
    return tuple(found)
