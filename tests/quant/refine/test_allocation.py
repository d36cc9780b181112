"""Allocation within a budget: against brute force, against the Lagrangian bound, and at its limits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgepack.errors import UsageError
from edgepack.gguf.types import GGMLType
from edgepack.quant.refine.allocation import Choice, allocate, hull, lagrangian_bound, least_bytes, segments, total
from edgepack.quant.refine.kinds import CANDIDATES, candidates, input_block


def instance(seed: int, items: int, choices: int, step: int = 32) -> list[list[Choice]]:
    """Items of different sizes whose costs fall about fourfold a doubling of bytes, with noise that breaks hulls."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(items):
        size, weight = int(rng.integers(1, 40)) * step, 10 ** rng.uniform(-4, 0)
        bits = np.sort(rng.uniform(2, 16, choices))
        noise = rng.uniform(0.7, 1.4, choices)
        found.append(
            [
                Choice(int(size * b) // step * step, float(weight * 4.0**-b * n))
                for b, n in zip(bits, noise, strict=True)
            ]
        )
    return found


def best_by_force(items: list[list[Choice]], budget: int) -> float:
    every = (total(items, chosen) for chosen in itertools.product(*(range(len(each)) for each in items)))
    return min(found.cost for found in every if found.bytes <= budget)


@pytest.mark.parametrize("seed", range(12))
def test_small_instances_are_solved_as_brute_force_does(seed: int) -> None:
    items = instance(seed, items=5, choices=4)
    low, high = least_bytes(items), sum(max(choice.bytes for choice in each) for each in items)
    for share in (0.0, 0.2, 0.5, 0.9, 1.0):
        budget = int(low + share * (high - low))
        found = total(items, allocate(items, budget))
        assert found.bytes <= budget
        assert found.cost == pytest.approx(best_by_force(items, budget), rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_large_instances_come_near_the_bound_within_two_thousandths_of_the_budget(seed: int) -> None:
    items = instance(seed, items=300, choices=13, step=4096)
    low, high = least_bytes(items), sum(max(choice.bytes for choice in each) for each in items)
    for share in (0.1, 0.4, 0.7):
        budget = int(low + share * (high - low))
        found = total(items, allocate(items, budget))
        assert budget * 0.998 <= found.bytes <= budget
        bound = lagrangian_bound(items, budget)
        assert bound * (1 - 1e-9) <= found.cost <= bound * 1.02


def test_no_fraction_of_the_bound_is_beaten() -> None:
    items = instance(7, items=6, choices=3)
    budget = int(1.5 * least_bytes(items))
    assert lagrangian_bound(items, budget) <= best_by_force(items, budget) * (1 + 1e-12)


def test_a_budget_below_the_least_is_refused_with_both_numbers() -> None:
    items = instance(1, items=3, choices=3)
    least = least_bytes(items)
    with pytest.raises(UsageError, match=f"at least {least} bytes.*got {least - 1}"):
        allocate(items, least - 1)
    assert total(items, allocate(items, least)).bytes == least


def test_bytes_that_save_nothing_are_not_spent() -> None:
    items = [[Choice(32, 1.0), Choice(64, 1.0), Choice(96, 2.0)], [Choice(32, 1.0), Choice(64, 0.5)]]
    assert allocate(items, 1000) == [0, 1]
    assert hull(items[0]) == [0]


def test_the_path_is_ordered_by_cost_saved_a_byte() -> None:
    prices = [segment.price for segment in segments(instance(3, items=20, choices=8))]
    assert prices == sorted(prices, reverse=True)
    assert min(prices) > 0


def test_no_item_needs_no_bytes() -> None:
    assert allocate([], 0) == []


def test_candidates_are_whole_blocks_and_there_is_always_a_float() -> None:
    assert candidates(256) == CANDIDATES
    assert candidates(40) == (GGMLType.F16,)
    assert all(kind.block_size in (1, 32) for kind in candidates(96))
    for columns in (32, 96, 576, 960, 1024):
        assert all(columns % kind.block_size == 0 for kind in candidates(columns))


@pytest.mark.parametrize(
    ("kind", "on_cpu", "on_gpu"),
    [(GGMLType.Q4_K, 256, 32), (GGMLType.IQ4_XS, 256, 32), (GGMLType.Q5_1, 32, 32), (GGMLType.F16, None, None)],
)
def test_inputs_are_rounded_as_the_type_s_products_do(kind: GGMLType, on_cpu: int | None, on_gpu: int | None) -> None:
    assert input_block(kind) == on_cpu
    assert input_block(kind, on_gpu=True) == on_gpu
