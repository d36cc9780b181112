"""Rounding onto grids: what holds for any matrix, and the curvature against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack.errors import NumericError
from edgepack.quant.codecs.ggml.codec import dequantize_rows
from edgepack.quant.codecs.ggml.host_grids import HOSTS, encode_host

torch = pytest.importorskip("torch")

from edgepack.quant.feedback import feedback_factor as exact_factor  # noqa: E402
from edgepack.quant.wire.factor import SweepFactor  # noqa: E402
from edgepack.quant.wire.grid import (  # noqa: E402
    PLAIN_ERROR,
    RUNGS,
    Lattice,
    best_factors,
    column_multiples,
    grid_cost,
    half,
    ladder,
    next_factors,
    row_scale,
)
from edgepack.quant.wire.rounding import round_matrix  # noqa: E402


def feedback_factor(hessian: torch.Tensor, damping: float = 0.01) -> SweepFactor:
    return SweepFactor.of(exact_factor(hessian, damping))


def problem(rows: int = 24, columns: int = 64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(400, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return torch.randn(rows, columns, generator=generator), inputs.T @ inputs / 400


def lattice(rows: int, columns: int, step: float, limit: int = 127, most: int = 256) -> Lattice:
    steps = half(torch.full((rows,), step))
    ones = torch.ones(columns, dtype=torch.int32)
    return Lattice(steps, torch.ones(rows, columns // 32, dtype=torch.int32), ones, ones * limit, most)


def cost(error, hessian) -> float:
    return float(torch.trace(error @ hessian @ error.T))


def test_feedback_costs_less_than_rounding_to_the_nearest() -> None:
    weights, hessian = problem()
    grid = lattice(*weights.shape, 0.1)
    rounded = round_matrix(weights, feedback_factor(hessian), grid)
    nearest = (weights / grid.steps[:, None]).round() * grid.steps[:, None]
    assert cost(weights - rounded.weights, hessian) < 0.6 * cost(weights - nearest, hessian)


def test_weights_lie_on_the_lattice_and_the_host_reads_them_back() -> None:
    weights, hessian = problem(columns=256)
    rounded = round_matrix(weights, feedback_factor(hessian), lattice(*weights.shape, 0.05))
    blocks = encode_host(
        HOSTS["q8"],
        rounded.lattice.steps.numpy().astype(np.float16),
        rounded.quants.numpy(),
        rounded.lattice.factors.numpy(),
    )
    assert np.array_equal(dequantize_rows(HOSTS["q8"].kind, blocks, *weights.shape), rounded.weights.numpy())


def test_an_outlier_raises_the_step_of_its_group_only() -> None:
    weights, hessian = problem()
    weights[3, 40] = 100.0
    rounded = round_matrix(weights, feedback_factor(hessian), lattice(*weights.shape, 0.1))
    assert int(rounded.quants.abs().max()) <= 127
    raised = rounded.lattice.factors > 1
    assert raised[3, 1]
    assert int(raised.sum()) == 1


def test_a_weight_beyond_the_greatest_factor_makes_the_step_of_its_row_larger() -> None:
    weights, hessian = problem()
    weights[3, 40] = 127 * 4 * 0.1 * 3
    grid = lattice(*weights.shape, 0.1, most=4)
    rounded = round_matrix(weights, feedback_factor(hessian), grid)
    grown = rounded.lattice.steps / grid.steps
    assert float(grown[3]) in (4.0, 8.0)
    assert int((grown > 1).sum()) == 1
    assert float((rounded.weights[3, 40] - weights[3, 40]).abs()) < 8 * 0.1 * 8


def test_weights_beyond_any_factor_are_refused() -> None:
    weights, hessian = problem()
    weights[3, 40] = 1e6
    with pytest.raises(NumericError, match="1 rows do not fit into integers up to 7: use a larger host"):
        round_matrix(weights, feedback_factor(hessian), lattice(*weights.shape, 2.0, limit=7, most=1))


def test_rounding_does_not_change_its_input_and_repeats_itself() -> None:
    weights, hessian = problem()
    before = weights.clone()
    first = round_matrix(weights, feedback_factor(hessian), lattice(*weights.shape, 0.1))
    second = round_matrix(weights, feedback_factor(hessian), lattice(*weights.shape, 0.1))
    assert torch.equal(weights, before)
    assert torch.equal(first.quants, second.quants)


def test_a_pull_makes_magnitudes_smaller_and_none_is_plain_rounding() -> None:
    weights, hessian = problem()
    plain = round_matrix(weights, feedback_factor(hessian), lattice(*weights.shape, 1.0))
    pulled = round_matrix(weights, feedback_factor(hessian), lattice(*weights.shape, 1.0), pull=0.2)
    assert float(pulled.quants.abs().float().mean()) < 0.95 * float(plain.quants.abs().float().mean())


def test_multiples_follow_the_wanted_steps() -> None:
    wanted = torch.exp(torch.randn(128, generator=torch.Generator().manual_seed(1)) * 0.5).double()
    found = {spread: column_multiples(wanted, 1, 8, spread) for spread in (1.0, 3.0)}

    def loss(spread: float) -> float:
        """Arithmetic over geometric mean of steps beside the wanted ones."""
        over = (found[spread][0] * found[spread][1] / wanted).square()
        return float(over.mean().log() - over.log().mean())

    assert loss(3.0) < 0.3 * loss(1.0)


def test_a_ladder_of_factors_has_equal_rungs_in_every_octave_and_ends_at_the_greatest() -> None:
    fine = Lattice(torch.ones(1), torch.ones(1, 1), torch.ones(32), torch.ones(32), 60, RUNGS)
    factors = [torch.tensor([1], dtype=torch.int32)]
    for _ in range(40):
        factors.append(next_factors(factors[-1], fine))
    found = [int(factor) for factor in factors]
    assert found[:18] == [*range(1, 17), 18, 20]
    assert found[-1] == 60
    doubling = Lattice(torch.ones(1), torch.ones(1, 1), torch.ones(32), torch.ones(32), 60)
    assert [int(next_factors(torch.tensor([n]), doubling)) for n in (1, 2, 32)] == [2, 4, 60]


def test_the_factor_of_a_group_is_the_cheapest_of_its_ladder() -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(40, 64, generator=generator) * torch.exp(torch.randn(40, 1, generator=generator))
    ones = torch.ones(64, dtype=torch.int32)
    grid = Lattice(torch.full((40,), 0.02), torch.full((40, 2), 8, dtype=torch.int32), ones, ones * 7, 63, RUNGS)
    found = best_factors(values, grid, PLAIN_ERROR)
    for row in range(40):
        for group in range(2):
            sizes = values[row, 32 * group : 32 * group + 32].abs() / 0.16
            if float(sizes.max()) <= 7:
                assert found[row, group] == 8
                continue
            costs = {}
            for factor in [*range(8, 17), *range(18, 33, 2), *range(36, 64, 4), 63]:
                ratio = factor / 8
                rest = (sizes - 7 * ratio).clamp_min(0).square().sum()
                costs[factor] = float(32 * PLAIN_ERROR * (ratio**2 - 2 * np.log(ratio)) + rest)
            assert costs[int(found[row, group])] == pytest.approx(min(costs.values()), rel=1e-4)


def test_a_grid_of_the_wanted_steps_that_holds_all_costs_least() -> None:
    weights, ones = torch.randn(16, 64, generator=torch.Generator().manual_seed(4)), torch.ones(64, dtype=torch.int32)

    def cost_of(step: float, limit: int) -> float:
        grid = Lattice(
            torch.full((16,), step / 8), torch.full((16, 2), 8, dtype=torch.int32), ones, ones * limit, 2048, 8
        )
        return grid_cost(weights, grid, torch.full((16, 64), 0.1).double(), PLAIN_ERROR)

    assert cost_of(0.1, 127) == pytest.approx(1)
    assert cost_of(0.1, 127) < cost_of(0.08, 127)
    assert cost_of(0.1, 127) < cost_of(0.125, 127)
    assert cost_of(0.1, 7) > 1.5


def test_a_group_shares_its_multiple() -> None:
    multiples, _ = column_multiples(torch.rand(64).double() + 0.1, 16, 8)
    assert (multiples.reshape(4, 16) == multiples[::16, None]).all()


def test_rows_that_matter_more_get_smaller_steps_and_dead_outputs_are_harmless() -> None:
    relative = row_scale(torch.tensor([1.0, 4.0, 0.0]), floor=0.01)
    assert float(relative[0]) == pytest.approx(2 * float(relative[1]), rel=0.1)
    assert torch.isfinite(relative).all()
    assert (row_scale(torch.zeros(3), 0.01) == 1).all()
    assert torch.allclose(ladder(relative), relative)


@pytest.mark.parametrize("bits", [11, 4])
def test_steps_have_no_more_bits_than_asked_for(bits: int) -> None:
    steps = half(torch.rand(500) * 3 + 1e-4, bits)
    mantissas = torch.frexp(steps)[0] * 2**bits
    assert torch.equal(mantissas, mantissas.round())
