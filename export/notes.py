"""What an export says besides what it writes: limits that the user should know of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edgepack.gguf import keys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.export.config import ModelConfig
    from edgepack.export.rules.family import Family
    from edgepack.gguf.types import Value
    from edgepack.model import TensorSource


# Where llama.cpp's tokenizer gives other ids than Hugging Face's: docs/tokenizers.md
SEES_HINT = "; --mmproj writes what sees"
"""The end of the note on tensors that are left out."""
_COARSE_PRE = frozenset({"tekken", "gpt-4o", "llama4"})


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
    if isinstance(published, int) and written < published and config.get("sliding_window") is not None:
        found.append(
            f"context: {written} tokens instead of {published}: the model's attention slides over {written},"
            " llama.cpp's does not, and the two agree up to there"
        )
    if family.nested:
        left_out = sum(any(re.search(pattern, name) for pattern in family.unused) for name in source.specs)
        found.append(
            f"{left_out} tensors of other modalities are left out: this is the part that reads and writes text"
            f"{SEES_HINT}"
        )
    return (*found, *family.remarks(config), *_tokenizer_limits(metadata))


def _tokenizer_limits(metadata: Mapping[str, Value]) -> list[str]:
    pre, lowercase = metadata.get(keys.TOKENIZER_PRE), metadata.get(keys.NORMALIZER_LOWERCASE)
    if pre is not None and pre.value in _COARSE_PRE:
        return [f"tokenizer: llama.cpp's '{pre.value}' cuts words at combining marks (Hindi, Khmer), the original not"]
    if lowercase is not None and lowercase.value:
        return ["tokenizer: llama.cpp's uncased WordPiece leaves Hangul whole, the original takes it apart"]
    return []
