"""A scorer's predictions chunk after chunk, computed ahead of their use; what is done with them is the caller's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

from edgepack.edge.fidelity.scorers.scorer import BatchScorer

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.edge.fidelity.agreement import TruncatedPredictions
    from edgepack.edge.fidelity.scorers.scorer import Chunk, Scorer


def score_ahead(
    scorer: Scorer, chunks: Iterator[Chunk]
) -> Iterator[tuple[Chunk, NDArray[np.float32] | TruncatedPredictions]]:
    """Each chunk with its predictions, the next ones being computed in a thread while the caller uses these."""
    scored = predictions(scorer, chunks)
    with ThreadPoolExecutor(1, thread_name_prefix="reference") as pool:
        future = pool.submit(next, scored, None)
        while (ready := future.result()) is not None:
            future = pool.submit(next, scored, None)
            yield ready


def predictions(
    scorer: Scorer, chunks: Iterator[Chunk]
) -> Iterator[tuple[Chunk, NDArray[np.float32] | TruncatedPredictions]]:
    """Each chunk with its predictions; in batches where the scorer takes them (`scorer_blockwise`)."""
    if not isinstance(scorer, BatchScorer):
        yield from ((chunk, scorer.score(chunk)) for chunk in chunks)
        return
    while first := next(chunks, None):
        batch = [first, *islice(chunks, scorer.batch_size(len(first.tokens)) - 1)]
        yield from zip(batch, scorer.score_batch(batch), strict=True)
