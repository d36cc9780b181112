"""Scores text with predictions that were stored: the reference's answers without the reference.

How they are stored is `stored_reference`'s.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from edgepack.edge.fidelity.agreement import TruncatedPredictions
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.edge.fidelity.scorers.scorer import Chunk
    from edgepack.edge.fidelity.stored_reference import StoredReference


class StoredTokenizer:
    """The token ids of the one text that was stored, as far as they were kept."""

    partial = True

    def __init__(self, stored: StoredReference) -> None:
        self._stored = stored

    def tokenize(self, text: str) -> NDArray[np.int32]:
        """The stored text's ids; raises UsageError for any other text."""
        expected, got = self._stored.facts.get("text_sha256"), hashlib.sha256(text.encode()).hexdigest()
        if expected != got:
            raise UsageError(f"the stored reference was made on another text: SHA-256 {expected}, got {got}")
        return self._stored.tokens.reshape(-1)

    def piece(self, token: int) -> str:
        """Only the number: no spellings are stored."""
        return f"<{token}>"

    @property
    def bos(self) -> int | None:
        """The token that every chunk begins with, or None."""
        return self._stored.bos


class StoredScorer:
    """A stored reference in the place of a model.

    Args:
        stored: what was kept.
        label: for people.
    """

    def __init__(self, stored: StoredReference, label: str) -> None:
        self.stored = stored
        self.label = label
        self.tokenizer = StoredTokenizer(stored)

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.stored.reference.vocabulary

    @property
    def context_limit(self) -> int:
        """The length of its chunks: it knows no others."""
        return int(self.stored.tokens.shape[1])

    def score(self, chunk: Chunk) -> TruncatedPredictions:
        """What was kept of the chunk's predictions.

        Raises:
            UsageError: no such chunk was stored.
        """
        if chunk.index >= len(self.stored.tokens) or not np.array_equal(self.stored.read(chunk.index), chunk.tokens):
            raise UsageError(f"{self.label}: chunk {chunk.index} was not stored: its token ids differ")
        if chunk.first != self.stored.first:
            raise UsageError(f"{self.label}: stored from position {self.stored.first} on, got {chunk.first}")
        rows, kept = self.stored.rows(chunk.index), self.stored.reference
        return TruncatedPredictions(
            kept.ids[rows], kept.log_probabilities[rows], kept.tail[rows], kept.target[rows], kept.vocabulary
        )

    def close(self) -> None:
        """Nothing to give back."""
