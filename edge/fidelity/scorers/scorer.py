"""What scores text: token ids in, logits out; and how a text is cut into the chunks that are scored.

It knows no library: `scorer_gguf`, `scorer_torch` and `scorer_stored` make scorers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from edgepack.edge.fidelity.agreement import TruncatedPredictions


class Tokenizer(Protocol):
    """Text to token ids and back, as one model has it."""

    def tokenize(self, text: str) -> NDArray[np.int32]:
        """Token ids [n] of `text`, with BOS in front where the model wants it."""
        ...

    def piece(self, token: int) -> str:
        """The text of one token, special ones spelled out."""
        ...

    @property
    def bos(self) -> int | None:
        """The token that begins every text, or None where the model wants none."""
        ...


class Scorer(Protocol):
    """A model that predicts, at each position, the token after it. It holds memory until `close`."""

    @property
    def label(self) -> str:
        """What it is, for people: a file's name and how it is run."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Its own tokenizer."""
        ...

    @property
    def vocabulary(self) -> int:
        """Width of a row of logits."""
        ...

    @property
    def context_limit(self) -> int:
        """The longest chunk it takes."""
        ...

    def score(self, chunk: Chunk) -> NDArray[np.float32] | TruncatedPredictions:
        """Logits [chunk.scored, vocabulary] at the chunk's scored positions (or what a store kept of them)."""
        ...

    def close(self) -> None:
        """Give its memory back; a second call does nothing."""
        ...


@runtime_checkable
class BatchScorer(Protocol):
    """A scorer for which many chunks at once cost less."""

    def batch_size(self, ctx: int) -> int:
        """How many chunks of `ctx` tokens to hand over together."""
        ...

    def score_batch(self, chunks: Sequence[Chunk]) -> Iterator[NDArray[np.float32]]:
        """Logits of each chunk, in their order."""
        ...


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens that a model reads from position 0, of which some predictions are scored.

    Attributes:
        index: number of the chunk in the text, from 0.
        start: position of its first token in the text's tokens.
        tokens: int32 [n], what the model reads (the first may be BOS in the text's token's place).
        targets: int32 [n - 1], the tokens that follow each position but the last.
        first: first position whose prediction is scored, included; the last is n - 2.
    """

    index: int
    start: int
    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    first: int

    @property
    def scored(self) -> int:
        """How many predictions are scored."""
        return len(self.targets) - self.first

    @property
    def scored_targets(self) -> NDArray[np.int32]:
        """int32 [scored], the tokens to be predicted."""
        return self.targets[self.first :]


@dataclass(frozen=True)
class Chunking:
    """How a text is cut.

    Attributes:
        ctx: tokens in a chunk.
        stride: None cuts as llama.cpp's perplexity tool does: chunks side by side, the last part short of `ctx`
            left out, the second half of each scored. A number is a sliding window: a chunk begins every `stride`
            tokens and only tokens that no chunk before has scored are scored; all but the first are, once.
        max_chunks: not more chunks than this; None is all.
    """

    ctx: int = 512
    stride: int | None = None
    max_chunks: int | None = None

    def __post_init__(self) -> None:
        if self.ctx < 4:
            raise UsageError(f"chunk length: expected at least 4 tokens, got {self.ctx}")
        if self.stride is not None and not 1 <= self.stride < self.ctx:
            raise UsageError(f"stride: expected 1 to {self.ctx - 1} (less than the chunk's length), got {self.stride}")
        if self.max_chunks is not None and self.max_chunks < 1:
            raise UsageError(f"chunks: expected at least 1, got {self.max_chunks}")

    def count(self, tokens: int) -> int:
        """Chunks of a text of `tokens` tokens.

        Raises:
            UsageError: the text is shorter than one chunk.
        """
        if tokens < self.ctx:
            raise UsageError(
                f"text has {tokens} tokens, a chunk needs {self.ctx}: give more text, or shorter chunks with --ctx"
            )
        step = self.ctx if self.stride is None else self.stride
        whole = (tokens - self.ctx) // step + 1
        if self.stride is not None and (whole - 1) * step + self.ctx < tokens:
            whole += 1  # the last window is shorter and ends with the text
        return whole if self.max_chunks is None else min(whole, self.max_chunks)

    def scored(self, tokens: int) -> int:
        """Predictions scored in a text of `tokens` tokens."""
        count = self.count(tokens)
        if self.stride is None:
            return count * (self.ctx - 1 - self.ctx // 2)
        return min(tokens, (count - 1) * self.stride + self.ctx) - 1

    def chunks(self, tokens: NDArray[np.int32], bos: int | None) -> Iterator[Chunk]:
        """Cut `tokens` [n]; each chunk's first token is replaced by `bos` unless that is None.

        Raises:
            UsageError: the text is shorter than one chunk.
        """
        step = self.ctx if self.stride is None else self.stride
        for index in range(self.count(len(tokens))):
            start = index * step
            read = np.array(tokens[start : start + self.ctx], dtype=np.int32)
            targets = read[1:].copy()
            if bos is not None:
                read[0] = bos
            yield Chunk(index, start, read, targets, self._first(index))

    def _first(self, index: int) -> int:
        if self.stride is None:
            return self.ctx // 2
        return 0 if index == 0 else self.ctx - 1 - self.stride


@dataclass(frozen=True)
class TokenDifference:
    """Where two tokenizers part.

    Attributes:
        position: of the first token that differs.
        reference, candidate: the ids there; None where that side's text has ended.
        reference_text, candidate_text: their spellings.
    """

    position: int
    reference: int | None
    candidate: int | None
    reference_text: str
    candidate_text: str

    def __str__(self) -> str:
        """One line for people."""
        sides = (("reference", self.reference, self.reference_text), ("candidate", self.candidate, self.candidate_text))
        told = [f"{side} ends" if token is None else f"{side} {token} {text!r}" for side, token, text in sides]
        return f"tokenizers differ at token {self.position}: {', '.join(told)}"


def first_difference(reference: Tokenizer, candidate: Tokenizer, text: str) -> TokenDifference | None:
    """Where the two tokenize `text` differently, or None."""
    ours, theirs = reference.tokenize(text), candidate.tokenize(text)
    if getattr(reference, "partial", False):  # a stored reference keeps the beginning
        theirs = theirs[: len(ours)]
    shared = min(len(ours), len(theirs))
    differing = np.flatnonzero(ours[:shared] != theirs[:shared])
    if not len(differing) and len(ours) == len(theirs):
        return None
    position = int(differing[0]) if len(differing) else shared
    left = int(ours[position]) if position < len(ours) else None
    right = int(theirs[position]) if position < len(theirs) else None
    return TokenDifference(
        position, left, right,
        "" if left is None else reference.piece(left), "" if right is None else candidate.piece(right),
    )  # fmt: skip
