"""Finds how long a chunk may be before more context makes a model worse; it measures the reference alone.

A model trained on short sequences says nothing sensible far beyond them, whatever its configuration claims;
agreement there would judge noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.edge.fidelity.agreement import TruncatedPredictions, log_softmax
from edgepack.edge.fidelity.scorers.scorer import Chunk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.edge.fidelity.scorers.scorer import Scorer

LENGTHS = (512, 256, 128, 64)
LONGEST = LENGTHS[0]
_PROBES = 8
_PREDICTED = 32  # tokens at the end of each probe
_TOLERANCE = 0.05  # nats: differences over 8 x 32 paired tokens are known to about 0.03


def usable_context(reference: Scorer, tokens: NDArray[np.int32]) -> int:
    """The chunk length to judge `reference` at: the longest of 512, 256, 128 and 64 that does no harm.

    The same tokens, at eight places of the text, are predicted from contexts of each length; a length is harmful
    when its mean loss exceeds the best one's by more than 0.05 nats.

    Args:
        reference: any scorer with logits.
        tokens: int32 [n], the text.

    Returns:
        One of the four lengths, within the model's own limit and the text's length; 64 where none is.
    """
    fitting = [length for length in LENGTHS if length <= min(reference.context_limit, len(tokens))]
    if len(fitting) < 2:
        return fitting[0] if fitting else min(LENGTHS[-1], reference.context_limit)
    ends = np.linspace(fitting[0], len(tokens), min(_PROBES, len(tokens) // fitting[0])).astype(int).tolist()
    losses = {
        length: np.mean([_loss(reference, tokens[end - length : end], _PREDICTED) for end in ends])
        for length in fitting
    }
    return next(length for length in fitting if losses[length] <= min(losses.values()) + _TOLERANCE)


def _loss(reference: Scorer, window: NDArray[np.int32], last: int) -> float:
    """Mean loss of the window's last `last` tokens."""
    read = np.array(window, dtype=np.int32)
    if reference.tokenizer.bos is not None:
        read[0] = reference.tokenizer.bos
    chunk = Chunk(0, 0, read, np.array(window[1:], dtype=np.int32), len(window) - 1 - last)
    predictions = reference.score(chunk)
    if isinstance(predictions, TruncatedPredictions):
        return -float(predictions.target.mean())
    rows = np.arange(chunk.scored)
    return -float(log_softmax(predictions)[rows, chunk.scored_targets].mean())
