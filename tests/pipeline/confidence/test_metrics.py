"""Figures of confidences against scikit-learn's numbers, against definitions, and for what always holds."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.pipeline.confidence import metrics

# scikit-learn 1.9.1 on the same arrays: calibration_curve(n_bins=15, strategy="uniform") weighted by counts,
# brier_score_loss, roc_auc_score, log_loss.
SKLEARN = {"ece": 0.18435, "brier": 0.1627515, "auroc": 0.8971593520220589, "log_loss": 0.48850671755042574}
answers = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40)


def arrays(pairs: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([one for one, _ in pairs]), np.array([right for _, right in pairs], dtype=bool)


def test_figures_are_scikit_learns() -> None:
    chance = np.random.default_rng(7)
    p = np.round(chance.random(400), 2)
    right = chance.random(400) < p**2
    assert metrics.calibration_error(p, right) == pytest.approx(SKLEARN["ece"], abs=1e-12)
    assert metrics.brier(p, right) == pytest.approx(SKLEARN["brier"], abs=1e-12)
    assert metrics.auroc(p, right) == pytest.approx(SKLEARN["auroc"], abs=1e-12)
    assert metrics.log_loss(p, right) == pytest.approx(SKLEARN["log_loss"], abs=1e-9)


def test_a_calibration_error_by_hand() -> None:
    p, right = arrays([(0.9, True), (0.9, False), (0.1, False), (0.1, False)])
    assert metrics.calibration_error(p, right) == pytest.approx((2 * abs(0.9 - 0.5) + 2 * 0.1) / 4)
    bins = [one for one in metrics.reliability(p, right) if one.count]
    assert [(one.count, one.confidence, one.accuracy) for one in bins] == [(2, 0.1, 0.0), (2, 0.9, 0.5)]


@given(answers)
def test_a_calibration_error_is_a_share_that_no_order_changes(pairs: list[tuple[float, bool]]) -> None:
    p, right = arrays(pairs)
    error = metrics.calibration_error(p, right)
    assert 0 <= error <= 1
    assert metrics.calibration_error(p[::-1], right[::-1]) == pytest.approx(error, abs=1e-12)
    twice = metrics.calibration_error(np.tile(p, 2), np.tile(right, 2))
    assert twice == pytest.approx(error, abs=1e-12)


@given(answers)
def test_what_is_certain_and_true_has_no_calibration_error(pairs: list[tuple[float, bool]]) -> None:
    _p, right = arrays(pairs)
    assert metrics.calibration_error(right.astype(float), right) == 0
    assert metrics.calibration_error((~right).astype(float), right) == 1


@given(answers)
def test_bins_hold_every_answer_within_their_bounds(pairs: list[tuple[float, bool]]) -> None:
    p, right = arrays(pairs)
    bins = metrics.reliability(p, right)
    assert len(bins) == metrics.BINS
    assert sum(one.count for one in bins) == len(p)
    assert all(one.low - 1e-12 <= one.confidence <= one.high + 1e-12 for one in bins if one.count)
    error = sum(one.count * abs(one.confidence - one.accuracy) for one in bins) / len(p)
    assert metrics.calibration_error(p, right) == pytest.approx(error, abs=1e-12)


@given(answers)
def test_auroc_is_the_share_of_pairs_in_the_right_order(pairs: list[tuple[float, bool]]) -> None:
    p, right = arrays(pairs)
    above = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in product(p[right], p[~right])]
    assert metrics.auroc(p, right) == pytest.approx(np.mean(above) if above else 0.5, abs=1e-12)


@given(answers)
def test_auroc_sees_order_alone(pairs: list[tuple[float, bool]]) -> None:
    p, right = arrays(pairs)
    p = np.round(p, 6)  # so that the curve below keeps different values apart
    assert metrics.auroc(p**3 / 2 + p / 4, right) == pytest.approx(metrics.auroc(p, right), abs=1e-12)
    if right.any() and not right.all():
        assert metrics.auroc(-p, right) == pytest.approx(1 - metrics.auroc(p, right), abs=1e-12)


@given(answers)
def test_risk_ends_at_the_share_of_wrong_answers(pairs: list[tuple[float, bool]]) -> None:
    p, right = arrays(pairs)
    coverage, risk = metrics.risk_coverage(p, right)
    assert coverage[-1] == 1
    assert risk[-1] == pytest.approx((~right).mean(), abs=1e-12)
    assert ((risk >= -1e-12) & (risk <= 1 + 1e-12)).all()


def test_risk_by_hand_where_equally_sure_answers_share_it() -> None:
    p, right = arrays([(0.9, True), (0.5, True), (0.5, False), (0.2, False)])
    coverage, risk = metrics.risk_coverage(p, right)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0, 0.25, 1 / 3, 0.5])
    assert metrics.area_under_risk(p, right) == pytest.approx(np.mean([0, 0.25, 1 / 3, 0.5]))


def test_by_chance_is_what_true_confidences_show() -> None:
    p = np.random.default_rng(3).random(500)
    shown = [metrics.calibration_error(p, np.random.default_rng(seed).random(500) < p) for seed in range(100, 160)]
    assert metrics.perfect_error(p) == pytest.approx(np.mean(shown), rel=0.1)


def test_drawing_whole_groups_keeps_their_answers_together() -> None:
    blocks = metrics.resamples([5, 5, 9, 9, 9], 130, seed=1)
    weights = np.concatenate(blocks)
    assert weights.shape == (130, 5)
    assert (weights[:, :1] == weights[:, :2]).all()
    assert (weights[:, 2:3] == weights[:, 2:]).all()
    assert (weights[:, 0] + weights[:, 2] == 2).all()


def test_an_interval_holds_the_error_that_a_large_sample_shows() -> None:
    chance = np.random.default_rng(11)
    p = chance.random(2000)
    right = chance.random(2000) < p**2
    low, high = metrics.calibration_interval(p, right, range(2000))
    assert low < np.mean(np.abs(p - p**2)) < high
