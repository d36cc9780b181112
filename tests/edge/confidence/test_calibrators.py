"""What is seen of an answer and what calibrators say of it: by hand, for every number, and read from hostile records."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.edge.confidence.calibrators import Isotonic, Platt, Raw, Temperature, from_object, to_object
from edgepack.edge.confidence.features import NAMES, Features, Observation, observe_answer, observe_choice
from edgepack.edge.llama.chances import LEAST_LOG_P, TokenChances, chances_of, told_chances
from edgepack.errors import UsageError

logs = st.floats(-60, 0, allow_nan=False)
finite = st.floats(-50, 50, allow_nan=False)
observations = st.builds(
    Observation,
    st.builds(Features, st.floats(-30, 30), logs, logs, st.floats(0, 10), finite, st.floats(0, 10)),
    st.just(()) | st.lists(logs, min_size=2, max_size=5).map(tuple),
)
six = st.tuples(*[finite] * 6)
platts = st.builds(
    lambda low, more, centre, scale, weights, bias: Platt(
        low, tuple(a + b for a, b in zip(low, more, strict=True)), centre, scale, weights, bias
    ),
    six, st.tuples(*[st.floats(0, 10)] * 6), six, st.tuples(*[st.floats(0.01, 10)] * 6), six, finite,
)  # fmt: skip
isotonics = st.lists(st.tuples(finite, st.floats(0, 1)), min_size=1, max_size=8, unique_by=lambda one: one[0]).map(
    lambda pairs: Isotonic(tuple(sorted(a for a, _ in pairs)), tuple(sorted(b for _, b in pairs)))
)
calibrators = st.one_of(st.floats(0.01, 100).map(Temperature), platts, isotonics)


def token(log_p: float, *others: float, name: int = 0) -> TokenChances:
    """A token among others, the likeliest first, as engines tell it."""
    told = sorted([(name, log_p), *((index + 1, other) for index, other in enumerate(others))], key=lambda one: -one[1])
    return TokenChances(name, log_p, tuple(told))


def test_an_answer_by_hand() -> None:
    half, quarter = math.log(0.5), math.log(0.25)
    seen = observe_answer([token(half, quarter), token(quarter, half)])
    assert seen is not None
    found = seen.features
    assert found.mean == pytest.approx((half + quarter) / 2)
    assert found.minimum == quarter
    # 0.5, 0.25 and the rest of 0.25 as one outcome: 1.5 bits at both places.
    assert found.entropy == pytest.approx(1.5 * math.log(2))
    assert found.margin == pytest.approx(-math.log(2))  # the second token was less likely than another
    assert found.length == pytest.approx(math.log(3))
    assert found.raw == pytest.approx(math.sqrt(0.125))


def test_a_choice_by_hand() -> None:
    scores = [math.log(0.2), math.log(0.6), math.log(0.2)]
    found = observe_choice(scores, [-0.1, -0.4]).features
    assert found.raw == pytest.approx(0.6)
    assert found.margin == pytest.approx(math.log(3))
    assert found.entropy == pytest.approx(-(0.6 * math.log(0.6) + 0.4 * math.log(0.2)))
    assert (found.mean, found.minimum) == (-0.25, -0.4)


def test_no_token_says_nothing() -> None:
    assert observe_answer([]) is None


@given(st.lists(st.lists(logs, min_size=1, max_size=4), min_size=1, max_size=5))
def test_features_are_finite_whatever_was_told(rows: list[list[float]]) -> None:
    """Probabilities that sum to more than 1 come of rounding, or of a lying engine."""
    seen = observe_answer([token(*row) for row in rows])
    assert seen is not None
    assert all(math.isfinite(value) for value in seen.features.values)
    assert 0 <= seen.features.raw <= 1


@given(st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=30), st.data())
def test_chances_are_the_softmax_and_its_likeliest(logits: list[float], data: st.DataObject) -> None:
    values = np.array(logits, np.float32)
    at = data.draw(st.integers(0, len(logits) - 1))
    count = data.draw(st.integers(1, 40))
    found = chances_of(values, at, count)
    shares = np.exp(values.astype(float)) / np.exp(values.astype(float)).sum()
    assert math.exp(found.log_p) == pytest.approx(shares[at], rel=1e-9)
    assert [math.exp(log_p) for _token, log_p in found.top] == pytest.approx(
        sorted(shares, reverse=True)[:count], rel=1e-9
    )
    assert all(math.exp(log_p) == pytest.approx(shares[index], rel=1e-9) for index, log_p in found.top)


def test_what_a_server_tells_is_read_and_its_least_float_is_limited() -> None:
    told = {"id": 7, "logprob": -3.4e38, "top_logprobs": [{"id": 1, "logprob": -0.5}, {"id": 7, "logprob": -3.4e38}]}
    assert told_chances(told) == TokenChances(7, LEAST_LOG_P, ((1, -0.5), (7, LEAST_LOG_P)))


@given(calibrators, observations)
def test_a_confidence_is_a_probability(calibrator: Any, seen: Observation) -> None:
    assert 0 <= calibrator.confidence(seen) <= 1
    assert 0 <= Raw().confidence(seen) <= 1


@given(calibrators, observations)
def test_a_record_gives_the_same_calibrator_back(calibrator: Any, seen: Observation) -> None:
    again = from_object(json.loads(json.dumps(to_object(calibrator))), "x")
    assert again == calibrator
    assert again.confidence(seen) == calibrator.confidence(seen)


@given(observations)
def test_a_temperature_of_one_changes_nothing(seen: Observation) -> None:
    written = Observation(seen.features)
    assert Temperature(1.0).confidence(written) == pytest.approx(math.exp(seen.features.mean))


@given(st.lists(logs, min_size=2, max_size=5), st.floats(0.1, 10), st.floats(1.01, 10))
def test_a_higher_temperature_is_never_surer_of_a_choice(scores: list[float], low: float, more: float) -> None:
    seen = observe_choice(scores, [-1.0])
    assert Temperature(low * more).confidence(seen) <= Temperature(low).confidence(seen) + 1e-12


def test_a_feature_beyond_what_was_seen_counts_as_the_nearest_that_was() -> None:
    ones = (1.0,) * 6
    platt = Platt((-1.0,) * 6, ones, (0.0,) * 6, ones, ones, 0.0)
    far = Observation(Features(30, 30, 30, 30, 30, 30))
    assert (
        platt.confidence(far) == platt.confidence(Observation(Features(*ones))) == pytest.approx(1 / (1 + math.e**-6))
    )


def test_isotonic_steps_by_hand() -> None:
    steps = Isotonic((-1.0, 1.0, 2.0), (0.2, 0.4, 0.9))
    said = [steps.confidence(Observation(Features(odds, -1, -1, 0, 0, 1))) for odds in (-5, -1, 0, 1, 1.5, 2, 9)]
    assert said == pytest.approx([0.2, 0.2, 0.3, 0.4, 0.65, 0.9, 0.9])


PLATT = to_object(Platt(*[(0.0,) * 6] * 2, (0.0,) * 6, (1.0,) * 6, (0.0,) * 6, 0.0))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (None, "x.method: expected temperature, platt or isotonic"),
        ([], "x.method"),
        ({"method": "raw"}, "x.method"),
        ({"method": ["platt"]}, "x.method"),
        ({"method": "temperature"}, "x.temperature: expected finite numbers"),
        ({"method": "temperature", "temperature": 0}, "x.temperature: expected 0.01 to 100, got 0"),
        ({"method": "temperature", "temperature": True}, "x.temperature: expected finite numbers"),
        ({"method": "temperature", "temperature": 10**400}, "x.temperature: expected finite numbers"),
        ({"method": "temperature", "temperature": math.nan}, "x.temperature: expected finite numbers"),
        ({**PLATT, "weights": [0.0] * 5}, "x.weights: expected 6 numbers"),
        ({**PLATT, "scale": [0.0] * 6}, "x.scale: expected numbers above 0"),
        ({**PLATT, "low": [1.0] * 6}, "x.low: expected none above its high"),
        ({**PLATT, "bias": "1"}, "x.bias: expected finite numbers"),
        ({"method": "isotonic"}, "x.odds: expected 1 to 4096 numbers, got 0"),
        ({"method": "isotonic", "odds": [0.0] * 5000, "confidences": []}, "got 5000"),
        ({"method": "isotonic", "odds": [1, 1], "confidences": [0, 1]}, "x.odds: expected rising numbers"),
        ({"method": "isotonic", "odds": [1, 2], "confidences": [1, 0]}, "x.confidences: expected numbers from 0 to 1"),
        ({"method": "isotonic", "odds": [1], "confidences": [1.5]}, "x.confidences: expected numbers from 0 to 1"),
    ],
)
def test_a_hostile_calibrator_is_one_line(told: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_object(told, "x")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_features_have_the_names_that_records_are_read_by() -> None:
    assert tuple(Features.__dataclass_fields__) == NAMES
