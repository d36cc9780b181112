"""Which rung of a ladder is likely to clear a gate, so that a search does not begin at the bottom.

A guess only decides what is tried first: what is shipped was judged, and what is next smaller has failed.
"""

from __future__ import annotations

import math
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.edge.fidelity.gates import Gates
    from edgepack.edge.fidelity.validate import Validation
    from edgepack.pipeline.outline import Outline

# Bits a weight of the whole file → mean KL in nats, between what is published for Llama-3 8B (docs/fidelity.md) and
# what a model of 135 M measures; the first try of a model says how far off it is.
_PRIOR = ((2.6, 0.5), (3.4, 0.14), (3.9, 0.08), (4.9, 0.035), (5.7, 0.014), (6.6, 0.0066), (8.5, 0.002), (16.0, 1e-5))
# Share of changed first choices over the root of the divergence: 95 % stands for .010 (Llama-3 8B, K-quants).
_FLIPS = 0.5


class GatePrediction:
    """Where on a ladder the gates are expected to be cleared.

    Args:
        outlines: the rungs, from small to large.
        gates: at least one bar.
    """

    def __init__(self, outlines: Sequence[Outline], gates: Gates) -> None:
        self._expected = [math.log(_prior(outline)) for outline in outlines]
        self._allowed = math.log(_allowed_divergence(gates))
        self._shift = 0.0  # how much more the model loses than expected, as a logarithm

    def learn(self, rung: int, found: Validation) -> None:
        """Take over how a rung did."""
        self._shift = math.log(max(found.statistics.divergence.mean, 1e-9)) - self._expected[rung]

    def next_rung(self, failed: int, passed: int) -> int:
        """The rung to try next, above `failed` and below `passed` (neither included); at least one must be left."""
        likely = next(
            (n for n, expected in enumerate(self._expected) if expected + self._shift <= self._allowed), passed
        )
        return min(max(likely, failed + 1), passed - 1)


def _prior(outline: Outline) -> float:
    """The divergence that files of so many bits a weight usually have."""
    bits = 8 * outline.bytes / sum(prod(row.shape) for row in outline.tensors)
    for (low, above), (high, below) in pairwise(_PRIOR):
        if bits <= high:
            share = max(0.0, (bits - low) / (high - low))
            return math.exp(math.log(above) + share * (math.log(below) - math.log(above)))
    return _PRIOR[-1][1]


def _allowed_divergence(gates: Gates) -> float:
    """The mean divergence at which the tightest gate is about to be missed."""
    bars = [] if gates.max_kl is None else [gates.max_kl]
    if gates.min_agreement is not None:
        bars.append(max(1e-9, ((1 - gates.min_agreement) / _FLIPS) ** 2))
    return min(bars, default=0.01)
