"""What a lesson that fell short of its purpose is told to try next."""

from __future__ import annotations

import pytest

from edgepack.edge.fidelity.tasks.knowledge import Known
from edgepack.pipeline.adapting.lesson import advice


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
