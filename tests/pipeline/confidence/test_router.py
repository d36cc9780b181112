"""Thresholds for a wanted accuracy or budget, by hand and for what always holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import CheckFailedError, UsageError
from edgepack.pipeline.confidence.router import LEAST_GIVEN, Wish, choose_threshold, measure_route

many = st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), st.booleans()), min_size=30, max_size=80)


def arrays(pairs: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([one for one, _ in pairs]), np.array([right for _, right in pairs], dtype=bool)


@given(many, st.sampled_from([0.1, 0.2, 0.5, 0.9]))
def test_no_more_than_the_budget_is_escalated_and_no_higher_threshold_keeps_to_it(
    pairs: list[tuple[float, bool]], share: float
) -> None:
    p, right = arrays(pairs)
    threshold, (low, high) = choose_threshold(p, right, range(len(p)), Wish(escalate=share))
    assert np.mean(p < threshold) <= share
    higher = p[p > threshold]
    assert not len(higher) or np.mean(p < higher.min()) > share
    assert low <= high


@given(many, st.sampled_from([0.3, 0.5, 0.8]))
def test_a_wanted_accuracy_is_reached_and_no_lower_threshold_reaches_it(
    pairs: list[tuple[float, bool]], wanted: float
) -> None:
    p, right = arrays(pairs)
    places = {one: (right[p >= one].mean(), (p >= one).sum()) for one in np.unique(p)}
    good = [one for one, (share, count) in places.items() if share >= wanted and count >= LEAST_GIVEN]
    if not good:
        with pytest.raises(CheckFailedError, match="no threshold reaches it"):
            choose_threshold(p, right, range(len(p)), Wish(accuracy=wanted))
        return
    assert choose_threshold(p, right, range(len(p)), Wish(accuracy=wanted))[0] == min(good)


def test_a_route_is_measured_on_other_answers() -> None:
    p = np.array([0.9, 0.8, 0.4, 0.3])
    right = np.array([True, False, True, False])
    raw = np.array([0.1, 0.2, 0.9, 0.3])
    routed = measure_route(0.5, (0.4, 0.6), p, right, raw, range(4))
    assert (routed.given, routed.accuracy, routed.accuracy_of_all) == (0.5, 0.5, 0.5)
    assert routed.raw_accuracy == 0.5  # the two surest by raw confidence: one right, one wrong
    assert routed.given_interval[0] <= 0.5 <= routed.given_interval[1]
    nobody = measure_route(0.95, (0.9, 1.0), p, right, raw, range(4))
    assert (nobody.given, nobody.accuracy, nobody.accuracy_interval) == (0, 0, (0.0, 1.0))


@pytest.mark.parametrize(
    ("accuracy", "escalate"), [(None, None), (0.5, 0.5), (0.0, None), (1.0, None), (None, 1.0), (None, float("nan"))]
)
def test_a_wish_is_one_share(accuracy: float | None, escalate: float | None) -> None:
    with pytest.raises(UsageError, match=r"^router: "):
        Wish(accuracy, escalate)
