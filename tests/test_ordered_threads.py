"""Work on threads: in order, bounded, and an error comes where its result would have."""

from __future__ import annotations

import threading
from itertools import count, islice
from typing import TYPE_CHECKING

import pytest

from edgepack.ordered_threads import ordered_map

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("ahead", [None, 0, 3])
def test_results_come_in_order_whatever_the_threads(threads: int, ahead: int | None) -> None:
    assert list(ordered_map(lambda n: n * n, range(50), threads, ahead=ahead)) == [n * n for n in range(50)]


@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_no_more_pieces_are_taken_than_may_wait(ahead: int) -> None:
    taken = []

    def pieces() -> Iterator[int]:
        for number in count():
            taken.append(number)
            yield number

    results = ordered_map(lambda n: n, pieces(), 2, ahead=ahead)
    assert list(islice(results, 10)) == list(range(10))
    assert len(taken) == 10 + ahead
    results.close()  # type: ignore[attr-defined]


def test_an_error_is_raised_in_its_place_and_nothing_begins_after_it() -> None:
    begun, gate = [], threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if number == 1:
            raise ValueError(number)
        gate.wait(0.01)
        return number

    results = ordered_map(work, range(1000), 1, ahead=4)
    assert next(results) == 0
    with pytest.raises(ValueError, match="1"):
        next(results)
    assert max(begun) <= 6
