"""Token measures equal a brute-force float64 reference written here; broken logits are named."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgepack.edge.fidelity.agreement import TruncatedPredictions, compare, log_softmax, truncate
from edgepack.errors import CheckFailedError, NumericError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Few distinct values make ties; -inf is a token that cannot come.
LOGIT = st.one_of(
    st.sampled_from([-math.inf, -2.0, 0.0, 0.5, 3.0]), st.floats(-40, 40, width=32, allow_subnormal=False)
)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    both = [draw(arrays(np.float32, (rows, columns), elements=LOGIT)) for _ in range(2)]
    for logits in both:
        logits[np.isneginf(logits).all(axis=1), draw(st.integers(0, columns - 1))] = 1.0
    return both[0], both[1], draw(arrays(np.int32, rows, elements=st.integers(0, columns - 1)))


def brute_probabilities(row: NDArray[np.float32]) -> list[float]:
    top = max(float(value) for value in row)
    weights = [math.exp(float(value) - top) for value in row]
    return [weight / math.fsum(weights) for weight in weights]


def brute_log(row: NDArray[np.float32], token: int) -> float:
    top = max(float(value) for value in row)
    return float(row[token]) - top - math.log(math.fsum(math.exp(float(value) - top) for value in row))


def brute_kl(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> float:
    terms = []
    for token, p in enumerate(brute_probabilities(reference)):
        if reference[token] == -math.inf:
            continue
        q = brute_log(candidate, token)
        if q == -math.inf:
            return math.inf if p else 0.0
        terms.append(p * (brute_log(reference, token) - q))
    return max(0.0, math.fsum(terms))


def first_largest(row: NDArray[np.float32]) -> int:
    return next(token for token, value in enumerate(row) if value == max(row))


@settings(max_examples=300, deadline=None)
@given(pairs())
def test_measures_equal_brute_force_with_ties_infinities_and_vocabularies_of_one(case: tuple) -> None:
    reference, candidate, targets = case
    got = compare(reference, candidate, targets)
    for row in range(len(targets)):
        expected = brute_kl(reference[row], candidate[row])
        assert got.divergence[row] == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert got.reference_top[row] == first_largest(reference[row])
        assert got.candidate_top[row] == first_largest(candidate[row])
        own = candidate[row][first_largest(reference[row])]
        assert got.in_top5[row] == (sum(value > own for value in candidate[row]) < 5)
        assert got.reference_target[row] == pytest.approx(brute_log(reference[row], targets[row]), abs=1e-9)
        assert got.candidate_target[row] == pytest.approx(brute_log(candidate[row], targets[row]), abs=1e-9)
        first, *others = sorted((float(value) for value in reference[row]), reverse=True)
        assert got.margin[row] == pytest.approx(first - others[0] if others else math.inf, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(pairs())
def test_equal_logits_agree_everywhere_and_do_not_diverge(case: tuple) -> None:
    reference, _candidate, targets = case
    got = compare(reference, reference.copy(), targets)
    assert got.agrees.all()
    assert (got.divergence == 0).all()


@settings(max_examples=100, deadline=None)
@given(pairs())
def test_keeping_every_token_measures_the_same_as_the_logits(case: tuple) -> None:
    reference, candidate, targets = case
    whole, kept = compare(reference, candidate, targets), truncate(reference, targets, reference.shape[1])
    got = compare(kept, candidate, targets)
    np.testing.assert_allclose(got.divergence, whole.divergence, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(got.reference_top, whole.reference_top)
    np.testing.assert_allclose(got.reference_target, whole.reference_target)


@settings(max_examples=100, deadline=None)
@given(pairs(), st.integers(1, 4))
def test_a_truncated_reference_never_overstates_the_divergence(case: tuple, k: int) -> None:
    reference, candidate, targets = case
    whole = compare(reference, candidate, targets).divergence
    part = compare(truncate(reference, targets, k), candidate, targets).divergence
    assert (part <= whole + 1e-7).all()


def test_blocks_do_not_change_the_measures() -> None:
    generator = np.random.default_rng(0)
    reference, candidate = generator.normal(0, 3, (2, 700, 1000)).astype(np.float32)
    targets = generator.integers(0, 1000, 700).astype(np.int32)
    whole = compare(reference, candidate, targets)
    for row in (0, 261, 262, 699):
        one = compare(reference[row : row + 1], candidate[row : row + 1], targets[row : row + 1])
        assert one.divergence[0] == whole.divergence[row]


def test_inputs_are_not_modified() -> None:
    logits = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    before = logits.copy()
    log_softmax(logits)
    truncate(logits, np.zeros(3, np.int32), 2)
    compare(logits, logits, np.zeros(3, np.int32))
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_broken_logits_are_named_by_side_position_and_token(value: float, side: str) -> None:
    sides = {name: np.zeros((4, 6), np.float32) for name in ("reference", "candidate")}
    sides[side][2, 5] = value
    with pytest.raises(NumericError, match=f"{side}.*got {value} at position 102, token 5"):
        compare(sides["reference"], sides["candidate"], np.zeros(4, np.int32), start=100)


def test_a_row_without_any_possible_token_is_an_error() -> None:
    logits = np.full((1, 3), -np.inf, np.float32)
    with pytest.raises(NumericError, match="position 0"):
        compare(logits, np.zeros((1, 3), np.float32), np.zeros(1, np.int32))


def test_vocabularies_of_different_size_are_refused_with_both_sizes() -> None:
    with pytest.raises(CheckFailedError, match="reference 3, candidate 4"):
        compare(np.zeros((1, 3), np.float32), np.zeros((1, 4), np.float32), np.zeros(1, np.int32))
    kept = TruncatedPredictions(np.zeros((1, 1), np.int32), np.zeros((1, 1)), np.zeros(1), np.zeros(1), 3)
    with pytest.raises(CheckFailedError, match="reference 3, candidate 4"):
        compare(kept, np.zeros((1, 4), np.float32), np.zeros(1, np.int32))
