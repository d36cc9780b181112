"""Which type each tensor gets so that the predicted divergence is least within a budget of bytes.

A knapsack with one choice an item: along the Lagrangian path of the items' convex hulls, then repaired to the byte by
dynamic programming over the items nearest the last price. What choices cost is left to those who ask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_CORE = 48  # items whose choice is searched exactly; a small model's are all of them
_UNITS = 1 << 15  # of the bytes that are left for them: fewer units than bytes where there are more


@dataclass(frozen=True)
class Choice:
    """One way to store an item.

    Attributes:
        bytes: that it takes, padding included.
        cost: what it is predicted to cost, in nats a token; finite, smaller is better.
    """

    bytes: int
    cost: float


@dataclass(frozen=True)
class Segment:
    """A step along an item's convex hull, from one of its choices to the next larger one.

    Attributes:
        item: its number.
        to: number of the choice that it leads to.
        bytes: more than before.
        gain: cost saved, positive.
    """

    item: int
    to: int
    bytes: int
    gain: float

    @property
    def price(self) -> float:
        """Cost saved a byte."""
        return self.gain / self.bytes


def least_bytes(items: Sequence[Sequence[Choice]]) -> int:
    """What the smallest choice of every item takes."""
    return sum(min(choice.bytes for choice in choices) for choices in items)


def least_cost(items: Sequence[Sequence[Choice]]) -> float:
    """What the smallest choice of every item costs; of equally small ones the best."""
    return math.fsum(items[item][hull(choices)[0]].cost for item, choices in enumerate(items))


def total(items: Sequence[Sequence[Choice]], chosen: Sequence[int]) -> Choice:
    """Bytes and cost of a choice for every item."""
    taken = [choices[number] for choices, number in zip(items, chosen, strict=True)]
    return Choice(sum(choice.bytes for choice in taken), math.fsum(choice.cost for choice in taken))


def allocate(items: Sequence[Sequence[Choice]], budget: int) -> list[int]:
    """The number of a choice for every item: at most `budget` bytes, the least cost that is found.

    Exact where items are at most 48 and the bytes between their smallest and largest choices at most 32,768 times
    their common divisor; else within the price of one segment (Lagrangian bound) less what repair finds. The result
    depends on nothing but the arguments.

    Raises:
        UsageError: the budget is below `least_bytes`.
    """
    least = least_bytes(items)
    if least > budget:
        raise UsageError(f"budget: expected at least {least} bytes, the least that these tensors take, got {budget}")
    chosen, price = _path(items, budget)
    found = [chosen, _filled(items, _core_solved(items, chosen, price, budget), budget)]
    return min(found, key=lambda numbers: total(items, numbers).cost)


def hull(choices: Sequence[Choice]) -> list[int]:
    """Numbers of the choices on the lower convex hull of cost against bytes, from the smallest to the best."""
    order = sorted(range(len(choices)), key=lambda number: (choices[number].bytes, choices[number].cost, number))
    kept: list[int] = []
    for number in order:
        one = choices[number]
        if kept and one.cost >= choices[kept[-1]].cost:
            continue
        while len(kept) > 1 and _bends_up(choices[kept[-2]], choices[kept[-1]], one):
            kept.pop()
        kept.append(number)
    return kept


def _bends_up(first: Choice, middle: Choice, last: Choice) -> bool:
    """Whether the middle one is not below the line from the first to the last."""
    left = (first.cost - middle.cost) * (last.bytes - middle.bytes)
    return left <= (middle.cost - last.cost) * (middle.bytes - first.bytes)


def segments(items: Sequence[Sequence[Choice]]) -> list[Segment]:
    """Every step of every hull, the most cost saved a byte first: the Lagrangian path."""
    found = []
    for item, choices in enumerate(items):
        for before, after in pairwise(hull(choices)):
            one, other = choices[before], choices[after]
            found.append(Segment(item, after, other.bytes - one.bytes, one.cost - other.cost))
    return sorted(found, key=lambda segment: (-segment.price, segment.item))


def lagrangian_bound(items: Sequence[Sequence[Choice]], budget: int) -> float:
    """A cost below which no allocation of `budget` bytes can be: the fractional optimum of the hulls."""
    left = budget - least_bytes(items)
    cost = least_cost(items)
    for segment in segments(items):
        share = min(1.0, left / segment.bytes)
        cost -= share * segment.gain
        left -= segment.bytes
        if left <= 0:
            break
    return cost


def _path(items: Sequence[Sequence[Choice]], budget: int) -> tuple[list[int], float]:
    """Along the Lagrangian path while the budget lasts, and the price of the first step that was too large."""
    chosen = [hull(choices)[0] for choices in items]
    left, price, blocked = budget - total(items, chosen).bytes, 0.0, set[int]()
    for segment in segments(items):
        if segment.item in blocked:
            continue
        if segment.bytes > left:
            price = price or segment.price
            blocked.add(segment.item)
            continue
        chosen[segment.item] = segment.to
        left -= segment.bytes
    return chosen, price


def _core_solved(items: Sequence[Sequence[Choice]], chosen: list[int], price: float, budget: int) -> list[int]:
    """The items nearest the price chosen anew, exactly but for units of bytes; the others stay as the path has them."""
    core = _core(items, price)
    capacity = budget - sum(items[n][chosen[n]].bytes for n in range(len(items)) if n not in core)
    found = list(chosen)
    for item, number in zip(core, _exact([items[n] for n in core], capacity), strict=True):
        found[item] = number
    return found


def _core(items: Sequence[Sequence[Choice]], price: float) -> list[int]:
    """Numbers of the items whose choice is least certain at a price."""
    nearest: dict[int, float] = {}
    for segment in segments(items):
        distance = abs(math.log(segment.price / price)) if price else 0.0
        nearest[segment.item] = min(distance, nearest.get(segment.item, math.inf))
    return sorted(sorted(nearest, key=lambda item: (nearest[item], item))[:_CORE])


def _exact(items: Sequence[Sequence[Choice]], capacity: int) -> list[int]:
    """The best choices by dynamic programming over units of bytes beyond every item's least; rounded up, never over."""
    least = [min(choice.bytes for choice in choices) for choices in items]
    extra = [[choice.bytes - low for choice in choices] for choices, low in zip(items, least, strict=True)]
    spare = min(capacity - sum(least), sum(max(each) for each in extra))
    common = math.gcd(*(size for each in extra for size in each)) or 1
    unit = common * max(1, -(-spare // (common * _UNITS)))
    room = spare // unit
    best: NDArray[np.float64] = np.zeros(room + 1)
    taken = np.zeros((len(items), room + 1), np.int16)
    for item, choices in enumerate(items):
        before, best = best, np.full(room + 1, math.inf)
        for number, choice in enumerate(choices):
            size = -(-extra[item][number] // unit)
            if size <= room:
                candidate = np.full(room + 1, math.inf)
                candidate[size:] = before[: room + 1 - size] + choice.cost
                better = candidate < best
                best[better], taken[item, better] = candidate[better], number
    return _traced(extra, unit, taken)


def _traced(extra: Sequence[Sequence[int]], unit: int, taken: NDArray[np.int16]) -> list[int]:
    """The choices that lead to the last cell."""
    at, found = taken.shape[1] - 1, []
    for item in reversed(range(len(extra))):
        number = int(taken[item, at])
        found.append(number)
        at -= -(-extra[item][number] // unit)
    return found[::-1]


def _filled(items: Sequence[Sequence[Choice]], chosen: list[int], budget: int) -> list[int]:
    """What is left of the budget spent on single changes, the most cost saved first."""
    chosen = list(chosen)
    left = budget - total(items, chosen).bytes
    while True:
        steps = [
            (items[item][chosen[item]].cost - choice.cost, -item, number)
            for item, choices in enumerate(items)
            for number, choice in enumerate(choices)
            if choice.bytes - items[item][chosen[item]].bytes <= left and choice.cost < items[item][chosen[item]].cost
        ]
        if not steps:
            return chosen
        _gain, negative, number = max(steps)
        item = -negative
        left -= items[item][number].bytes - items[item][chosen[item]].bytes
        chosen[item] = number
