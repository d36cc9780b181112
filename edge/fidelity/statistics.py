"""Adds up token measures over a text in bounded memory: means with intervals, quantiles, flips.

It knows nothing of models or text; intervals treat a chunk as one observation, since the tokens in it are correlated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.edge.fidelity.agreement import TokenMeasures

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
CONFIDENCE = 0.95


def student_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t: exact for 1 and 2 degrees of freedom, else Abramowitz & Stegun 26.7.5."""
    if degrees < 1.5:
        return math.tan(math.pi * (probability - 0.5))
    if degrees < 2.5:
        a = 2 * probability - 1
        return a * math.sqrt(2 / (1 - a * a))
    z = NormalDist().inv_cdf(probability)
    z3, z5, z7, z9 = z**3, z**5, z**7, z**9
    return (
        z
        + (z3 + z) / (4 * degrees)
        + (5 * z5 + 16 * z3 + 3 * z) / (96 * degrees**2)
        + (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384 * degrees**3)
        + (79 * z9 + 776 * z7 + 1482 * z5 - 1920 * z3 - 945 * z) / (92160 * degrees**4)
    )


@dataclass
class ClusteredMean:
    """A mean over tokens whose uncertainty comes from the spread between chunks (a ratio estimator).

    Each chunk gives a sum over its tokens and their number; five running sums are kept, not the chunks.
    """

    total: float = 0.0
    tokens: int = 0
    chunks: int = 0
    _squares: float = 0.0
    _products: float = 0.0
    _token_squares: float = 0.0

    def add(self, total: float, tokens: int) -> None:
        """Take in one chunk: the sum over its `tokens` tokens."""
        self.total += total
        self.tokens += tokens
        self.chunks += 1
        self._squares += total * total
        self._products += total * tokens
        self._token_squares += float(tokens) * tokens

    @property
    def mean(self) -> float:
        """The mean over tokens; NaN before the first."""
        return self.total / self.tokens if self.tokens else math.nan

    @property
    def standard_error(self) -> float:
        """Of the mean, between chunks; NaN below two chunks."""
        if self.chunks < 2 or not math.isfinite(self.total):
            return math.nan
        p = self.mean
        residual = self._squares - 2 * p * self._products + p * p * self._token_squares
        return math.sqrt(max(residual, 0.0) * self.chunks / (self.chunks - 1)) / self.tokens

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Student's interval (low, high) of the mean; unbounded below two chunks."""
        if not math.isfinite(self.mean):
            return self.mean, self.mean
        if self.chunks < 2:
            return -math.inf, math.inf
        half = student_quantile(0.5 + confidence / 2, self.chunks - 1) * self.standard_error
        return self.mean - half, self.mean + half

    def share_interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Wilson's interval (low, high) of a share in [0, 1], at the effective number of tokens.

        The effective number is tokens divided by the design effect (variance between chunks over the binomial
        one), never more than the tokens (Korn & Graubard 1998 use it so for clustered surveys). Unlike Student's
        interval it is sound at 0 and 1: fifty tokens that all agree do not prove certainty.
        """
        p, n = self.mean, float(self.tokens)
        if not n:
            return 0.0, 1.0
        z = NormalDist().inv_cdf(0.5 + confidence / 2)
        binomial = p * (1 - p) / n
        if self.chunks >= 2 and binomial > 0:
            n /= max(1.0, self.standard_error**2 / binomial)
            n *= (z / student_quantile(0.5 + confidence / 2, self.chunks - 1)) ** 2
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


class LogHistogram:
    """Counts of non-negative numbers in bins of equal ratio: quantiles of any number of tokens in 0.5 MB.

    Bins divide 1e-12 … 1e4 so that neighbours differ by 0.06 %; smaller numbers count as 0, larger ones in the
    last bin; infinities are counted apart.
    """

    LOW, HIGH, BINS = 1e-12, 1e4, 1 << 16

    def __init__(self) -> None:
        self.counts = np.zeros(self.BINS + 1, dtype=np.int64)  # bin 0: below LOW
        self.infinite = 0
        self.maximum = 0.0

    def add(self, values: NDArray[np.float64]) -> None:
        """Count `values` [n]."""
        finite = values[np.isfinite(values)]
        self.infinite += len(values) - len(finite)
        if len(values):
            self.maximum = max(self.maximum, float(values.max()))
        scale = self.BINS / math.log(self.HIGH / self.LOW)
        with np.errstate(divide="ignore"):
            bins = np.floor(np.log(finite / self.LOW) * scale) + 1
        bins = np.clip(bins, 0, self.BINS).astype(np.int64)
        np.add.at(self.counts, bins, 1)

    def quantile(self, fraction: float) -> float:
        """The `fraction` quantile, linear between neighbours in rank as llama.cpp's tool has it."""
        size = int(self.counts.sum()) + self.infinite
        if not size:
            return math.nan
        rank = fraction * (size - 1)
        low = int(rank)
        first, second = self._ranked(low), self._ranked(min(low + 1, size - 1))
        return first if first == second else first + (rank - low) * (second - first)

    def coarse(self, edges: NDArray[np.float64]) -> NDArray[np.int64]:
        """Counts between consecutive `edges` (ascending; below the first and above the last included): [n + 1]."""
        centres = np.array([self._centre(index) for index in np.flatnonzero(self.counts).tolist()])
        found = np.searchsorted(edges, centres, side="right")
        result = np.bincount(found, weights=self.counts[self.counts > 0], minlength=len(edges) + 1)
        return result.astype(np.int64)

    def _ranked(self, rank: int) -> float:
        cumulative = np.cumsum(self.counts)
        if rank >= cumulative[-1]:
            return math.inf
        return self._centre(int(np.searchsorted(cumulative, rank, side="right")))

    def _centre(self, index: int) -> float:
        if index == 0:
            return 0.0
        ratio = math.log(self.HIGH / self.LOW) / self.BINS
        return min(self.LOW * math.exp((index - 0.5) * ratio), self.maximum)


@dataclass
class Covariance:
    """Running sums for the correlation of two numbers a token has."""

    count: int = 0
    _sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(5))

    def add(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        """Take in pairs x, y [n]."""
        self.count += len(x)
        self._sums += [x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()]

    @property
    def correlation(self) -> float:
        """Pearson's; NaN when either is constant."""
        if not self.count:
            return math.nan
        x, y, xx, yy, xy = self._sums / self.count
        spread = (xx - x * x) * (yy - y * y)
        if not spread > 0:
            return math.nan
        return float((xy - x * y) / math.sqrt(spread))


@dataclass
class AgreementStatistics:
    """Everything that a text's token measures add up to; memory does not grow with the text.

    Attributes:
        agreement, top5: shares of tokens.
        divergence: mean KL in nats.
        reference_loss, candidate_loss, loss_difference: mean negative log-likelihood in nats.
        probability_change: mean of Δp, candidate less reference, of the text's own next token.
        lost, gained: tokens that only the reference (only the candidate) predicted rightly.
        accuracy_drop: mean over tokens of (predicted rightly by the reference) - (by the candidate).
        along_position: int64 [2, positions], agreeing tokens and all tokens by their position in the chunk.
    """

    agreement: ClusteredMean = field(default_factory=ClusteredMean)
    top5: ClusteredMean = field(default_factory=ClusteredMean)
    divergence: ClusteredMean = field(default_factory=ClusteredMean)
    reference_loss: ClusteredMean = field(default_factory=ClusteredMean)
    candidate_loss: ClusteredMean = field(default_factory=ClusteredMean)
    loss_difference: ClusteredMean = field(default_factory=ClusteredMean)
    probability_change: ClusteredMean = field(default_factory=ClusteredMean)
    squared_change: ClusteredMean = field(default_factory=ClusteredMean)
    accuracy_drop: ClusteredMean = field(default_factory=ClusteredMean)
    histogram: LogHistogram = field(default_factory=LogHistogram)
    losses: Covariance = field(default_factory=Covariance)
    lost: int = 0
    gained: int = 0
    along_position: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 0), dtype=np.int64))

    @property
    def tokens(self) -> int:
        """Scored tokens so far."""
        return self.agreement.tokens

    def add(self, measures: TokenMeasures, first: int = 0) -> None:
        """Take in one chunk, whose first scored position (in the chunk) is `first`."""
        n = len(measures)
        agrees = measures.agrees
        with np.errstate(invalid="ignore"):
            difference = measures.reference_target - measures.candidate_target
        change = np.exp(measures.candidate_target) - np.exp(measures.reference_target)
        for mean, values in (
            (self.agreement, agrees),
            (self.top5, measures.in_top5),
            (self.divergence, measures.divergence),
            (self.reference_loss, -measures.reference_target),
            (self.candidate_loss, -measures.candidate_target),
            (self.loss_difference, difference),
            (self.probability_change, change),
            (self.squared_change, change**2),
        ):
            mean.add(float(values.sum()), n)
        self.histogram.add(measures.divergence)
        self.losses.add(measures.reference_target, measures.candidate_target)
        right, kept = measures.reference_top == measures.targets, measures.candidate_top == measures.targets
        lost, gained = int((right & ~kept).sum()), int((kept & ~right).sum())
        self.lost, self.gained = self.lost + lost, self.gained + gained
        self.accuracy_drop.add(float(lost - gained), n)
        self._add_positions(agrees, first)

    def _add_positions(self, agrees: NDArray[np.bool_], first: int) -> None:
        end = first + len(agrees)
        if end > self.along_position.shape[1]:
            grown = np.zeros((2, end), dtype=np.int64)
            grown[:, : self.along_position.shape[1]] = self.along_position
            self.along_position = grown
        self.along_position[0, first:end] += agrees
        self.along_position[1, first:end] += 1
