"""Metadata of a model's twin: what llama.cpp builds its graph from, and no vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.gguf import keys
from edgepack.gguf.types import string, u32

if TYPE_CHECKING:
    from edgepack.gguf.reader import GGUFHeader
    from edgepack.gguf.types import Value

_NOT_OF_THE_GRAPH = (keys.GENERAL, "tokenizer.", keys.SPLIT, keys.QUANTIZE, "edgepack.")


def twin_metadata(header: GGUFHeader, n_vocab: int) -> dict[str, Value]:
    """Everything but the vocabulary and what no graph is built from.

    Args:
        header: the model's; keys outside of the architecture's own belong to graphs too, such as xIELU's.
        n_vocab: rows of its output matrix.
    """
    name = str(header.get(keys.ARCHITECTURE))
    kept = {key: value for key, value in header.metadata.items() if not key.startswith(_NOT_OF_THE_GRAPH)}
    kept |= {
        keys.ARCHITECTURE: string(name),
        f"{name}.vocab_size": u32(n_vocab),
        keys.TOKENIZER_MODEL: string("none"),
    }
    if keys.VOCABULARY_SEGMENTS in header.metadata:
        kept[keys.VOCABULARY_SEGMENTS] = header.metadata[keys.VOCABULARY_SEGMENTS]
    return kept
