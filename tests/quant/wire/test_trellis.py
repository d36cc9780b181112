"""Trellis-coded rounding: the cheapest path against brute force, lanes, and integers that the archive recognises."""

from __future__ import annotations

import shutil
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.packaging.coding.trellis_symbols import as_indices, follow, starts
from edgepack.trellis import LANE_BYTES, MOST_ROWS, STATES, TrellisCode, trellis_of

torch = pytest.importorskip("torch")

from edgepack.quant.feedback import feedback_factor as exact_factor  # noqa: E402
from edgepack.quant.wire.factor import SweepFactor  # noqa: E402
from edgepack.quant.wire.grid import Lattice, half  # noqa: E402
from edgepack.quant.wire.lanes import Lanes, TrellisRounding  # noqa: E402
from edgepack.quant.wire.rates import RateModel  # noqa: E402
from edgepack.quant.wire.rounding import round_matrix  # noqa: E402
from edgepack.quant.wire.trellis import Trellis  # noqa: E402


def feedback_factor(hessian: torch.Tensor, damping: float = 0.01) -> SweepFactor:
    return SweepFactor.of(exact_factor(hessian, damping))


def lanes_of(rows: int, length: int, aside: torch.Tensor | None = None) -> Lanes:
    return Lanes.cut([rows], length, torch.zeros(rows, dtype=torch.bool) if aside is None else aside)


@pytest.mark.parametrize("states", STATES)
def test_half_of_the_states_have_each_quantiser_and_every_state_follows_two(states: int) -> None:
    code = TrellisCode(states, 16)
    assert sum(code.quantisers) == states // 2
    following = [(2 * state + step) % states for state in range(states) for step in (0, 1)]
    assert sorted(following) == sorted(list(range(states)) * 2)


@pytest.mark.parametrize(("states", "rows"), [(3, 16), (512, 16), (8, 0)])
def test_a_code_that_is_not_in_the_table_is_refused(states: int, rows: int) -> None:
    with pytest.raises(ValueError, match="expected one of"):
        TrellisCode(states, rows)


def test_paths_are_as_long_as_a_chunk_of_the_archive_allows() -> None:
    assert trellis_of(8, 272).rows == MOST_ROWS
    wide = trellis_of(8, 15232)
    assert wide is not None
    assert wide.rows * 15232 <= LANE_BYTES < 2 * wide.rows * 15232
    assert trellis_of(8, LANE_BYTES // 4) is None


def allowed_paths(code: TrellisCode, rows: int, start: int, most: int):
    """Every sequence of integers of magnitude up to `most` that the code allows, by its definition."""
    for integers in product(range(-most, most + 1), repeat=rows):
        state = start
        for integer in integers:
            if integer % 2 != code.quantisers[state]:
                break
            index = (integer - code.quantisers[state]) // 2
            state = (2 * state + (index % 2 ^ code.taps[state])) % code.states
        else:
            yield integers


@pytest.mark.parametrize(("states", "column"), [(4, 0), (4, 3), (8, 5)])
def test_the_path_is_the_cheapest_of_all_that_the_code_allows(states: int, column: int) -> None:
    code, generator = TrellisCode(states, 5), torch.Generator().manual_seed(column)
    values = torch.randn(5, generator=generator) * 2
    weights = torch.rand(5, generator=generator) + 0.5
    found = Trellis(code, lanes_of(5, 5), values.device).nearest(values, column, 4, weights)
    costs = {
        path: float(((values - torch.tensor(path)).square() * weights).sum())
        for path in allowed_paths(code, 5, column % states, 4)
    }
    assert tuple(found.int().tolist()) == min(costs, key=costs.__getitem__)


_COMPILED = """
import torch
from edgepack.quant.wire.lanes import Lanes
from edgepack.quant.wire.trellis import Trellis
from edgepack.trellis import TrellisCode
code, generator = TrellisCode(8, 40), torch.Generator().manual_seed(8)
values = torch.randn(100, generator=generator) * 4
lanes = Lanes.cut([100], 40, values.abs() < 0.2)
eager, compiled = (Trellis(code, lanes, values.device, compiling=each).nearest(values, 3, 20) for each in (False, True))
assert eager.abs().max() > 4 and torch.equal(compiled, eager)
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++ on the CPU")
def test_steps_that_torch_compiles_for_other_devices_find_the_same_paths() -> None:
    # In a process of its own: torch's compiler imports distutils, which others then find replaced.
    done = subprocess.run([sys.executable, "-c", _COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@settings(max_examples=40, deadline=None)
@given(data=st.data(), length=st.sampled_from([1, 4, 16]), heights=st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_every_row_is_in_one_lane_or_stands_aside(data: st.DataObject, length: int, heights: list[int]) -> None:
    total = sum(heights)
    aside = torch.tensor(data.draw(st.lists(st.booleans(), min_size=total, max_size=total)))
    lanes = Lanes.cut(heights, length, aside)
    held = lanes.rows[lanes.real].tolist()
    assert sorted(held) == (~aside).nonzero()[:, 0].tolist()
    owner = torch.repeat_interleave(torch.arange(len(heights)), torch.tensor(heights))
    first = torch.tensor([0, *torch.tensor(heights).cumsum(0)[:-1].tolist()])
    for lane, real in zip(lanes.rows.T, lanes.real.T, strict=True):
        rows = lane[real]
        assert len(set(owner[rows].tolist())) == 1
        assert len(set(((rows - first[owner[rows]]) // length).tolist())) == 1
        assert rows.tolist() == sorted(rows.tolist())


def problem(rows: int, columns: int, seed: int, outlier: bool = False):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4 * columns, columns, generator=generator)
    weights = torch.randn(rows, columns, generator=generator) * torch.exp(
        torch.randn(rows, 1, generator=generator) * 1.5
    )
    if outlier:
        weights[rows // 2, 3] = 60.0
    return weights, feedback_factor(inputs.T @ inputs / len(inputs))


@pytest.mark.parametrize("multiple", [1, 3])
@pytest.mark.parametrize(("rows", "columns", "outlier"), [(40, 64, False), (70, 32, True), (5, 32, False)])
def test_the_archive_recognises_what_was_rounded(rows: int, columns: int, outlier: bool, multiple: int) -> None:
    code, (weights, factor) = TrellisCode(8, 16), problem(rows, columns, rows, outlier)
    multiples = torch.full((columns,), multiple, dtype=torch.int32)
    steps = half(torch.full((rows,), 0.3))
    factors = torch.ones(rows, columns // 32, dtype=torch.int32)
    lattice = Lattice(steps, factors, multiples, 127 // multiples, 256)
    rates = RateModel.of(weights, factor, lattice)
    lanes = lanes_of(rows, code.rows, rates.below())
    rounded = round_matrix(weights, factor, lattice, paths=TrellisRounding(code, lanes, torch.ones(rows), rates))
    assert not outlier or bool((rounded.lattice.factors > 1).any())
    integers = rounded.quants.numpy().astype(np.int64)
    found = as_indices(integers, np.gcd.reduce(integers, axis=0).clip(1, 255), code)
    assert found is not None
    assert not (rates.below().numpy() & ~found.aside).any()
    assert np.array_equal((2 * found.indices + found.quantisers) * found.multiples, integers)


def test_integers_that_do_not_follow_the_code_are_told_apart() -> None:
    integers = np.random.default_rng(0).integers(-9, 10, (32, 32))
    code = TrellisCode(8, 16)
    assert not follow(integers, np.zeros(32, bool), starts(code, 32), code)[1].any()
    assert as_indices(integers, np.ones(32, np.int64), code) is None


def excess(states: int, scale: float) -> float:
    """Bits above the Gaussian rate-distortion bound, by empirical entropies."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(256, 128, generator=generator) * scale
    ones = torch.ones(128, dtype=torch.int32)
    lattice = Lattice(torch.ones(256), ones.expand(256, -1), ones, ones * 4000, 1)
    factor, paths = feedback_factor(torch.eye(128), 0.0), None
    code = TrellisCode(max(states, 4), 128)
    if states:
        rates = RateModel.of(weights, factor, lattice)
        paths = TrellisRounding(code, lanes_of(256, 128), torch.ones(256), rates)
    rounded = round_matrix(weights, factor, lattice, paths=paths)
    error = float((weights - rounded.weights).square().mean()) / scale**2
    integers = rounded.quants.numpy().astype(np.int64)
    symbols, kinds = integers, np.zeros_like(integers)
    if states:
        found = as_indices(integers, np.ones(128, np.int64), code)
        assert found is not None
        symbols, kinds = found.indices, found.quantisers
    bits = 0.0
    for kind in (0, 1):
        shares = np.unique(symbols[kinds == kind], return_counts=True)[1] / symbols.size
        bits += float(-(shares * np.log2(shares / max(shares.sum(), 1e-12))).sum())
    return bits + 0.5 * np.log2(error)


@pytest.mark.parametrize("scale", [2.0, 8.0])
def test_eight_states_are_within_an_eighth_of_a_bit_of_the_bound_and_a_plain_grid_is_not(scale: float) -> None:
    assert excess(8, scale) < 0.125
    assert excess(0, scale / 1.8) > 0.24


def test_a_row_of_small_weights_stands_aside_and_costs_nothing() -> None:
    weights, factor = problem(32, 32, 3)
    weights[1::2] *= 1e-4
    ones = torch.ones(32, dtype=torch.int32)
    lattice = Lattice(half(torch.full((32,), 0.05)), torch.ones(32, 1, dtype=torch.int32), ones, ones * 127, 256)
    rates = RateModel.of(weights, factor, lattice)
    paths = TrellisRounding(TrellisCode(8, 16), lanes_of(32, 16, rates.below()), torch.ones(32), rates)
    rounded = round_matrix(weights, factor, lattice, paths=paths)
    assert not rounded.quants[1::2].any()
    assert rounded.quants[::2].any(1).all()
