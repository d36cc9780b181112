"""Calibrators are fitted as scikit-learn fits them, forget what they were fitted on, and refuse what teaches nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from references.known_answers import overconfident, written

from edgepack.edge.confidence.calibrators import Raw
from edgepack.edge.confidence.features import Features, Observation, observe_choice
from edgepack.errors import CalibrationError
from edgepack.pipeline.confidence import fitting, metrics
from edgepack.pipeline.confidence.asking import Answered
from edgepack.pipeline.confidence.calibrate import CalibrateOptions, fit_form
from edgepack.pipeline.confidence.router import Wish


def error(calibrator: object, answers: list[Answered]) -> float:
    return metrics.calibration_error(fitting.confidences(calibrator, answers), fitting.truths(answers))  # type: ignore[arg-type]


def test_the_logistic_regression_is_scikit_learns() -> None:
    """LogisticRegression(C=1/(0.05 · 300)) of scikit-learn 1.9.1 on scaled features, Platt's targets as weights."""
    chance = np.random.default_rng(7)  # the same draws as the numbers below were made with
    chance.random(400), chance.random(400), chance.normal(size=200), chance.random(200)
    table = chance.normal(size=(300, 6))
    right = chance.random(300) < 1 / (1 + np.exp(-(table @ [1, -0.5, 0.25, 0, 2, 0.1] + 0.3)))
    answers = [
        Answered(number, number, Observation(Features(*row)), 1, bool(one))
        for number, (row, one) in enumerate(zip(table.tolist(), right, strict=True))
    ]
    found = fitting.fit_platt(answers, penalty=0.05)
    expected = [0.6528059, -0.1254748, 0.2639371, 0.2012872, 1.1908126, -0.0899969]
    assert found.weights == pytest.approx(expected, abs=1e-4)
    assert found.bias == pytest.approx(0.213977, abs=1e-4)


def test_the_isotonic_steps_are_scikit_learns() -> None:
    """IsotonicRegression(out_of_bounds="clip", y_min=1/202, y_max=201/202) of scikit-learn 1.9.1."""
    chance = np.random.default_rng(7)
    chance.random(400), chance.random(400)
    odds = np.round(chance.normal(size=200), 1)
    right = chance.random(200) < 1 / (1 + np.exp(-odds))
    found = fitting.fit_isotonic(
        [written(z, bool(one), number) for number, (z, one) in enumerate(zip(odds, right, strict=True))]
    )
    asked = [written(z, True, 0).seen for z in (-3, -1.25, -0.33, 0, 0.41, 1.77, 4)]
    expected = [0.004950495, 0.1176470588, 0.4736842105, 0.5952380952, 0.6, 0.995049505, 0.995049505]
    assert [found.confidence(one) for one in asked] == pytest.approx(expected, abs=1e-9)


def test_the_temperature_of_choices_is_the_one_that_drew_them() -> None:
    chance = np.random.default_rng(5)
    answers = []
    for number in range(3000):
        scores = chance.normal(0, 3, 4)
        shares = np.exp(scores / 2.5) / np.exp(scores / 2.5).sum()
        right = int(chance.choice(4, p=shares))
        seen = observe_choice(scores.tolist(), [-1.0])
        answers.append(Answered(number, number, seen, 1, right == int(scores.argmax()), right))
    found = fitting.fit_temperature(answers)
    assert found.temperature == pytest.approx(2.5, rel=0.06)
    assert error(found, answers) < 0.04 < error(Raw(), answers)


def test_the_temperature_of_written_answers_is_the_power_that_drew_them() -> None:
    answers = overconfident(4000, 1, power=2.0)
    found = fitting.fit_temperature(answers)
    assert found.temperature == pytest.approx(0.5, rel=0.06)  # p to the power of 1 / 0.5


@pytest.mark.parametrize("method", fitting.METHODS)
def test_a_fit_on_one_half_calibrates_the_other(method: fitting.Method) -> None:
    answers = overconfident(4000, 2)
    first, second = answers[:2000], answers[2000:]
    found = fitting.fit(method, first, seed=0)
    assert error(Raw(), second) > 0.12
    assert error(found.calibrator, second) < 0.05
    assert found.unseen.shape == (2000,)
    assert found.loss == pytest.approx(metrics.log_loss(found.unseen, fitting.truths(first)))


def test_what_is_said_of_an_answer_is_not_changed_by_whether_it_is_right() -> None:
    """The folds: turning one answer round moves what is said of others, not of itself."""
    answers = overconfident(200, 3)
    turned = [replace(one, right=not one.right) if number == 17 else one for number, one in enumerate(answers)]
    first, second = (fitting.fit("temperature", some, seed=4).unseen for some in (answers, turned))
    assert first[17] == second[17]
    assert (first != second).any()


def test_halves_share_no_group_and_are_about_as_large() -> None:
    groups = [number // 7 for number in range(700)]
    first, second = fitting.halves(groups, seed=3)
    assert sorted([*first, *second]) == list(range(700))
    assert not {groups[index] for index in first} & {groups[index] for index in second}
    assert abs(len(first) - 350) <= 7
    assert fitting.halves(groups, seed=3) == (first, second) != fitting.halves(groups, seed=4)


@pytest.mark.parametrize("right", [True, False])
def test_answers_of_one_kind_alone_are_refused(right: bool) -> None:
    answers = [written(0.1 * number, right, number) for number in range(200)]
    with pytest.raises(CalibrationError, match=r"expected at least 10 right and 10 wrong answers, got \d+ and \d+"):
        fitting.check_answers(answers, "text questions")


def test_a_half_that_got_one_kind_alone_is_refused() -> None:
    """All wrong answers share their text, so that they land on one side."""
    answers = [written(0.1, number >= 12, number, group=0 if number < 12 else number) for number in range(120)]
    with pytest.raises(CalibrationError, match="on each half"):
        fit_form("text", answers, CalibrateOptions())


def test_too_few_answers_are_refused() -> None:
    with pytest.raises(CalibrationError, match="expected at least 100 questions with an answer, got 99"):
        fitting.check_answers(overconfident(99, 0), "text questions")


@pytest.mark.parametrize("method", [*fitting.METHODS, "auto"])
def test_a_form_is_kept_with_the_method_asked_for_and_judged_on_the_other_half(method: str) -> None:
    answers = overconfident(1200, 6)
    options = CalibrateOptions(method=method, wish=Wish(accuracy=0.7))  # type: ignore[arg-type]
    found = fit_form("text", answers, options)
    assert (found.fitted_on, found.judged_on) == (600, 600)
    assert method in (found.method, "auto")
    assert found.fitted.calibrator.method == found.method
    assert list(found.methods) == ["raw", *fitting.METHODS]
    assert found.methods[found.method].ece < found.methods["raw"].ece
    assert found.routed.accuracy > 0.65
    assert found.routed.accuracy_interval[0] < found.routed.accuracy < found.routed.accuracy_interval[1]
    assert found.routed.accuracy > found.routed.accuracy_of_all
    assert found.fitted.lengths == (2, 2)
    assert found == fit_form("text", answers, options)


def test_extreme_answers_leave_every_number_finite() -> None:
    answers = [written(30.0 if number % 2 else -30.0, bool(number % 2), number) for number in range(120)]
    for method in fitting.METHODS:
        found = fitting.fit(method, answers, seed=0)
        said = fitting.confidences(found.calibrator, answers)
        assert np.isfinite(said).all()
        assert ((said >= 0) & (said <= 1)).all()
