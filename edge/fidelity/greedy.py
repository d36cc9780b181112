"""How long two models, each following its own first choice, write the same; and why they part.

Both continue the same beginnings of the text. As long as they agree they have read the same tokens, so the
candidate need not write: it is asked, at every position of the reference's continuation, what it would have chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, median
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from edgepack.edge.fidelity.agreement import compare
from edgepack.edge.fidelity.scorers.scorer import Chunk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgepack.edge.fidelity.scorers.scorer import Chunking, Scorer

PROMPTS, NEW_TOKENS = 8, 48
NARROW_MARGIN = 0.1  # nats: the reference itself hardly preferred its choice


@runtime_checkable
class Writer(Protocol):
    """A scorer that can also write."""

    def continue_greedily(self, tokens: NDArray[np.int32], count: int) -> NDArray[np.int32]:
        """At most `count` tokens that the model itself puts after `tokens`, always its first choice."""
        ...


@dataclass(frozen=True)
class Parting:
    """One beginning, continued by both.

    Attributes:
        length: tokens that both write alike.
        limit: tokens that the reference wrote; equal to `length` where they never part.
        margin: the reference's log-probability of its choice less its second's, where they part; else None.
        reference, candidate: the tokens chosen there; None where they never part.
    """

    length: int
    limit: int
    margin: float | None
    reference: int | None
    candidate: int | None


@dataclass(frozen=True)
class GreedyAgreement:
    """All beginnings.

    Attributes:
        partings: one a beginning.
    """

    partings: tuple[Parting, ...]

    @property
    def mean_length(self) -> float:
        """Mean number of tokens written alike; those that never part count with their limit."""
        return mean(parting.length for parting in self.partings)

    @property
    def median_length(self) -> float:
        """As `mean_length`, the median."""
        return median(parting.length for parting in self.partings)

    @property
    def never(self) -> int:
        """Beginnings at which they never part within the limit."""
        return sum(parting.margin is None for parting in self.partings)

    @property
    def narrow(self) -> int:
        """Partings at which the reference itself hardly preferred its choice: chance, not harm."""
        return sum(parting.margin is not None and parting.margin < NARROW_MARGIN for parting in self.partings)


def greedy_agreement(
    reference: Scorer,
    candidates: Sequence[Scorer],
    tokens: NDArray[np.int32],
    chunking: Chunking,
    prompts: int = PROMPTS,
    new_tokens: int = NEW_TOKENS,
) -> list[GreedyAgreement | None]:
    """How long each candidate writes what the reference writes.

    Args:
        reference: must be able to write, else nothing is measured.
        candidates: any scorers with logits.
        tokens: int32 [n], the text's, of at least one chunk.
        chunking: prompt and continuation together are at most one chunk long.
        prompts: how many beginnings, spread over the text.
        new_tokens: at most this many are written after each.
    """
    if not isinstance(reference, Writer) or prompts < 1:
        return [None] * len(candidates)
    new_tokens = min(new_tokens, chunking.ctx // 2)
    prompt = chunking.ctx - new_tokens
    written: list[Chunk] = []
    for start in np.linspace(0, len(tokens) - prompt, prompts).astype(int).tolist():
        read = np.array(tokens[start : start + prompt], dtype=np.int32)
        if reference.tokenizer.bos is not None:
            read[0] = reference.tokenizer.bos
        whole = np.concatenate([read, reference.continue_greedily(read, new_tokens)]).astype(np.int32)
        if len(whole) > prompt:
            written.append(Chunk(len(written), start, whole, whole[1:], prompt - 1))
    return [
        GreedyAgreement(tuple(_parting(reference, candidate, chunk) for chunk in written)) if written else None
        for candidate in candidates
    ]


def _parting(reference: Scorer, candidate: Scorer, chunk: Chunk) -> Parting:
    answers = candidate.score(chunk)
    assert isinstance(answers, np.ndarray)
    found = compare(reference.score(chunk), answers, chunk.scored_targets)
    apart = np.flatnonzero(found.candidate_top != found.targets)
    if not len(apart):
        return Parting(chunk.scored, chunk.scored, None, None, None)
    at = int(apart[0])
    return Parting(at, chunk.scored, float(found.margin[at]), int(found.targets[at]), int(found.candidate_top[at]))
