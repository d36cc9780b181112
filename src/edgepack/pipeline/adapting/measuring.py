"""Files with and without adapters held against an original on pieces of tokens; and how hard each piece is to a file.

Agreement of distributions is `edge.fidelity.agreement`'s, running models the scorers'.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.edge.fidelity.agreement import check_logits, compare, log_softmax
from edgepack.edge.fidelity.scorers.scorer import Chunk
from edgepack.edge.fidelity.statistics import AgreementStatistics
from edgepack.files.output import atomic_output
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.edge.fidelity.scorers.scorer import Scorer
    from edgepack.progress import Progress

_KEEP_EVERY = 64  # examples between two times that difficulties are written down


@dataclass(frozen=True)
class Measured:
    """One file on the pieces.

    Attributes:
        bytes: of what is shipped, adapters included.
        kl: mean divergence from the original, nats a token.
        kl_interval: 95 % of it, by the spread between pieces.
        agreement: share of equal first choices.
        perplexity: of the text's own tokens.
        reference_perplexity: the original's.
    """

    bytes: int
    kl: float
    kl_interval: tuple[float, float]
    agreement: float
    perplexity: float
    reference_perplexity: float

    @property
    def perplexity_rise(self) -> float:
        """By how much perplexity lies above the original's, as a share."""
        return self.perplexity / self.reference_perplexity - 1

    def regained(self, before: Measured) -> float:
        """Share of the divergence of `before` that came back; negative where more was lost."""
        return 1 - self.kl / before.kl if before.kl > 0 else 0.0

    def json(self) -> dict[str, object]:
        """For scripts; an interval without ends is null."""
        low, high = self.kl_interval
        return {
            "bytes": self.bytes, "mean_kl": self.kl,
            "kl_interval": [low, high] if math.isfinite(low) and math.isfinite(high) else None,
            "top1_agreement": self.agreement, "perplexity": self.perplexity,
            "reference_perplexity": self.reference_perplexity,
        }  # fmt: skip


def chunk_of(number: int, tokens: NDArray[Any], first: int) -> Chunk:
    """A piece [length], whose predictions from position `first` on are scored."""
    ids = np.asarray(tokens, dtype=np.int32)
    return Chunk(number, number * len(ids), ids, ids[1:], first)


def measure(
    reference: Scorer,
    openers: Sequence[tuple[int, Callable[[], Scorer]]],
    pieces: Sequence[NDArray[Any]],
    progress: Progress = silent,
) -> list[Measured]:
    """Hold files against the original, all at the second half of each piece, as llama.cpp's own tool scores.

    Args:
        reference: the original; it stays open.
        openers: (bytes, what opens the file's scorer) of each.
        pieces: int [length] each.
        progress: told of pieces.

    Raises:
        CheckFailedError: vocabularies of different sizes.
        NumericError: NaN or +inf among logits.
    """
    with ExitStack() as opened:
        scorers = [opened.enter_context(closing(opener())) for _bytes, opener in openers]
        found = [AgreementStatistics() for _ in openers]
        with progress("measuring", len(pieces), " pieces") as advance:
            for number, tokens in enumerate(pieces):
                chunk = chunk_of(number, tokens, len(tokens) // 2)
                expected = reference.score(chunk)
                for scorer, statistics in zip(scorers, found, strict=True):
                    got = scorer.score(chunk)
                    assert isinstance(got, np.ndarray)
                    statistics.add(compare(expected, got, chunk.scored_targets, chunk.start + chunk.first), chunk.first)
                advance(1)
    return [_measured(size, statistics) for (size, _opener), statistics in zip(openers, found, strict=True)]


def _measured(size: int, found: AgreementStatistics) -> Measured:
    return Measured(
        size, found.divergence.mean, found.divergence.interval(), found.agreement.mean,
        math.exp(found.candidate_loss.mean), math.exp(found.reference_loss.mean),
    )  # fmt: skip


def difficulties(
    scorer: Scorer, examples: Any, folder: Path, *, opening: int = 0, progress: Progress = silent
) -> NDArray[np.float32]:
    """How hard each example is to a model: mean loss of its labelled tokens, nats; float32 [examples].

    What an interrupted call of the same left in the folder is taken up.

    Args:
        scorer: the model.
        examples: a dataset of `input_ids` and `labels`.
        folder: of the run.
        opening: tokens at an example's beginning that are not counted: nobody can foresee those.
        progress: told of examples.
    """
    path = folder / "difficulties.npy"
    found, done = _kept(path, len(examples))
    with progress("scoring examples", len(examples) - done, " examples") as advance:
        for index in range(done, len(examples)):
            found[index] = _difficulty(scorer, examples[index], index, opening)
            if (index + 1) % _KEEP_EVERY == 0 or index + 1 == len(examples):
                with atomic_output(path) as stream:
                    np.save(stream, found)
            advance(1)
    return found


def _kept(path: Path, count: int) -> tuple[NDArray[np.float32], int]:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        found = np.empty(0, np.float32)
    if found.shape != (count,) or found.dtype != np.float32:
        found = np.full(count, np.nan, np.float32)
    return found, int(np.isfinite(found).sum())


def _difficulty(scorer: Scorer, example: dict[str, Any], index: int, opening: int) -> float:
    ids, labels = example["input_ids"].numpy(), example["labels"].numpy()
    counted = np.flatnonzero(labels[1:] >= 0)
    counted = counted[counted >= min(opening, int(counted[-1]))]
    first = int(counted[0])
    logits = scorer.score(chunk_of(index, ids, first))
    assert isinstance(logits, np.ndarray)
    check_logits(logits, scorer.label, first)
    log_p = log_softmax(logits)
    return float(-log_p[counted - first, ids[1:][counted]].mean())
