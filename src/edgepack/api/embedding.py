"""Texts into vectors by an opened model: the prompt that it wants before them, and lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import UsageError
from edgepack.gguf import keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgepack.edge.llama.engine import OpenModel
    from edgepack.gguf.reader import GGUFHeader


def embeddings_of(model: OpenModel, texts: Sequence[str], *, scaled: bool) -> NDArray[np.float32]:
    """float32 [texts, width], each of length 1 where `scaled`; raises UsageError for a text longer than a batch."""
    found = np.empty((len(texts), model.n_embd), np.float32)
    for row, text in zip(found, texts, strict=True):
        vector = model.embed(model.tokenize(text, parse_special=True))
        row[:] = vector / (float(np.linalg.norm(vector)) or 1.0) if scaled else vector
    return found


def embedding_prompt(header: GGUFHeader, name: str | None) -> str:
    """The text that the model wants before every input: the one of that name, else its default; raises UsageError."""
    prompts = sorted(key for key in header.metadata if key.startswith(keys.EMBEDDING_PROMPT))
    chosen = header.get(keys.EMBEDDING_DEFAULT_PROMPT) if name is None else name
    if chosen is None:
        return ""
    if f"{keys.EMBEDDING_PROMPT}{chosen}" not in prompts:
        known = ", ".join(key.removeprefix(keys.EMBEDDING_PROMPT) for key in prompts) or "none"
        raise UsageError(f"prompt '{chosen}': expected one of {known}")
    return str(header.get(f"{keys.EMBEDDING_PROMPT}{chosen}"))
