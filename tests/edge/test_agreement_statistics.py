"""Sums over a text equal numpy's on the whole; intervals cover; memory does not grow with the text."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgepack.edge.fidelity.agreement import compare
from edgepack.edge.fidelity.statistics import (
    AgreementStatistics,
    ClusteredMean,
    LogHistogram,
    student_quantile,
)


@pytest.mark.parametrize(
    ("degrees", "expected"),
    # Student's t at 97.5 %, from the printed tables.
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_students_quantile_equals_the_tables(degrees: int, expected: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(expected, rel=5e-3)


def test_a_clustered_mean_of_single_tokens_is_the_ordinary_standard_error() -> None:
    values = np.random.default_rng(0).normal(2, 3, 500)
    mean = ClusteredMean()
    for value in values:
        mean.add(float(value), 1)
    assert mean.mean == pytest.approx(values.mean())
    assert mean.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(500))


def test_the_share_interval_of_independent_tokens_is_wilsons() -> None:
    values = np.random.default_rng(1).random(2000) < 0.95
    mean = ClusteredMean()
    for value in values:
        mean.add(float(value), 1)
    p, n, z = values.mean(), 2000, NormalDist().inv_cdf(0.975)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = mean.share_interval()
    assert (high - low) / 2 == pytest.approx(half, rel=5e-3)


def test_the_interval_covers_the_truth_when_tokens_of_a_chunk_are_correlated() -> None:
    """A binomial interval by tokens would cover far less than 95 % here."""
    generator = np.random.default_rng(2)
    covered = by_tokens = 0
    for _ in range(400):
        mean = ClusteredMean()
        for share in generator.beta(19, 1, size=40):  # each chunk its own difficulty; the mean is 0.95
            mean.add(float(generator.binomial(100, share)), 100)
        low, high = mean.share_interval()
        covered += low <= 0.95 <= high
        half = 1.96 * math.sqrt(mean.mean * (1 - mean.mean) / 4000)
        by_tokens += abs(mean.mean - 0.95) <= half
    assert covered >= 360
    assert by_tokens < 300


@given(st.integers(1, 50), st.integers(1, 400))
def test_full_agreement_never_claims_certainty(chunks: int, tokens: int) -> None:
    mean = ClusteredMean()
    for _ in range(chunks):
        mean.add(float(tokens), tokens)
    low, high = mean.share_interval()
    assert high == pytest.approx(1.0, abs=1e-12)
    assert 0 < low < 1


@settings(max_examples=50, deadline=None)
@given(arrays(np.float64, st.integers(1, 400), elements=st.floats(1e-9, 1e3)), st.sampled_from([0.5, 0.9, 0.999, 1.0]))
def test_quantiles_equal_numpys_within_a_bin(values: np.ndarray, fraction: float) -> None:
    histogram = LogHistogram()
    for part in np.array_split(values, 3):
        histogram.add(part)
    assert histogram.quantile(fraction) == pytest.approx(np.quantile(values, fraction), rel=1e-3)
    assert histogram.maximum == values.max()
    assert histogram.coarse(np.array([1e-3, 1.0])).sum() == len(values)


def test_zeros_and_infinities_are_counted_not_lost() -> None:
    histogram = LogHistogram()
    histogram.add(np.array([0.0, 0.0, 0.0, math.inf]))
    assert histogram.quantile(0.5) == 0
    assert histogram.quantile(1.0) == math.inf
    assert histogram.infinite == 1


def random_statistics(parts: int) -> AgreementStatistics:
    generator = np.random.default_rng(3)
    reference = generator.normal(0, 3, (600, 50)).astype(np.float32)
    candidate = (reference + generator.normal(0, 0.3, reference.shape)).astype(np.float32)
    targets = generator.integers(0, 50, 600).astype(np.int32)
    statistics = AgreementStatistics()
    for rows in np.array_split(np.arange(600), parts):
        statistics.add(compare(reference[rows], candidate[rows], targets[rows]), first=4)
    return statistics


def test_sums_do_not_depend_on_the_chunks() -> None:
    one, many = random_statistics(1), random_statistics(12)
    assert many.agreement.mean == pytest.approx(one.agreement.mean)
    assert many.divergence.mean == pytest.approx(one.divergence.mean)
    assert many.loss_difference.mean == pytest.approx(one.candidate_loss.mean - one.reference_loss.mean)
    assert many.losses.correlation == pytest.approx(one.losses.correlation)
    assert many.histogram.quantile(0.9) == one.histogram.quantile(0.9)
    assert (many.lost, many.gained) == (one.lost, one.gained)
    assert many.along_position.shape == (2, 54)
    assert many.along_position[1].sum() == 600
    assert many.along_position[0].sum() == round(one.agreement.total)


def test_memory_does_not_grow_with_the_text() -> None:
    def size(statistics: AgreementStatistics) -> int:
        return statistics.histogram.counts.nbytes + statistics.along_position.nbytes

    assert size(random_statistics(100)) <= size(random_statistics(10))
