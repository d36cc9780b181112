"""What a lesson or a recovery that fell short of its purpose is told to try next."""

from __future__ import annotations

import pytest

from edgepack.edge.fidelity.tasks.knowledge import Known
from edgepack.pipeline.adapting import recovery
from edgepack.pipeline.adapting.lesson import advice
from edgepack.pipeline.adapting.measuring import Measured


def known(right: int) -> Known:
    return Known({"term": (True,) * right + (False,) * (10 - right)}, {}, {"term": 0.25})


def test_a_lesson_that_is_known_and_cost_nothing_is_told_nothing() -> None:
    assert advice(known(8), 0.02, 3) == []


@pytest.mark.parametrize(("epochs", "told"), [(3.0, "more epochs, such as --epochs 12"), (None, "more steps")])
def test_a_lesson_that_is_half_known_is_told_how_more_of_it_is(epochs: float | None, told: str) -> None:
    (line,) = advice(known(5), -0.01, epochs)
    assert line.startswith("teach: knows 50 % of what single sentences say")
    assert line.endswith(told)


def test_a_lesson_that_cost_other_text_much_is_told_what_keeps_it() -> None:
    (line,) = advice(known(10), 0.146, 12)
    assert line.startswith("teach: other text has 14.6 % more perplexity: --replay")


def test_documents_without_terms_are_judged_by_what_was_forgotten_alone() -> None:
    assert advice(Known({"passage": (False,)}, {}, {"passage": 0.25}), 0.0, 3) == []


def measured(kl: float) -> Measured:
    return Measured(bytes=1, kl=kl, kl_interval=(kl, kl), agreement=0.9, perplexity=10.0, reference_perplexity=9.0)


@pytest.mark.parametrize(("after", "rate", "told"), [
    (0.5, 8e-7, []),
    (0.985, None, []),
    (0.985, 8e-7, ["recover: 1.5 % of the lost divergence came back: a rate of 8e-07 moves an adapter slowly, --rate auto"
                   " goes by the model's width"]),
    (1.0, None, ["recover: on unseen text the file with the adapter is no nearer to the original than without"]),
])  # fmt: skip
def test_a_recovery_that_gave_back_little_is_told_why(after: float, rate: float | None, told: list[str]) -> None:
    assert recovery.advice(measured(1.0), measured(after), rate) == told
