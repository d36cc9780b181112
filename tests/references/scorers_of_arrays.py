"""Scorers that know their logits from a table: a twenty-line model for tests of what runs scorers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgepack.edge.fidelity.scorers.scorer import Chunk

VOCABULARY = 64


@dataclass
class LetterTokenizer:
    """Characters modulo the vocabulary; `shift` makes another tokenizer of it."""

    bos: int | None = 1
    shift: int = 0

    def tokenize(self, text: str) -> np.ndarray:
        ids = [(ord(letter) + self.shift) % VOCABULARY for letter in text]
        return np.array(ids if self.bos is None else [self.bos, *ids], np.int32)

    def piece(self, token: int) -> str:
        return chr(token + 64)


@dataclass
class TableScorer:
    """Logits depend on the current token alone: row `token` of a table, plus noise of its own."""

    noise: float = 0.0
    label: str = "table"
    tokenizer: LetterTokenizer = field(default_factory=LetterTokenizer)
    vocabulary: int = VOCABULARY
    context_limit: int = 1024
    broken_at: int | None = None
    closed: bool = False

    def score(self, chunk: Chunk) -> np.ndarray:
        table = np.random.default_rng(0).normal(0, 2, (VOCABULARY, self.vocabulary))
        table += self.noise * np.random.default_rng(1).normal(0, 1, table.shape)
        logits = table[chunk.tokens[chunk.first : -1]].astype(np.float32)
        if self.broken_at is not None and 0 <= (row := self.broken_at - chunk.start - chunk.first) < len(logits):
            logits[row, 3] = np.nan
        return logits

    def close(self) -> None:
        self.closed = True
