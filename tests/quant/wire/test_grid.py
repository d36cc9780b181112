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
    Lattice,
    coding_loss,
    column_multiples,
    half,
    ladder,
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
    multiples, factor = column_multiples(wanted, 1, 8, spread=3.0)
    ones, centre = column_multiples(wanted, 1, 8, spread=1.0)
    nothing = torch.zeros(1).double()
    assert coding_loss(wanted, (multiples, factor), nothing) < 0.3 * coding_loss(
        wanted, (torch.ones_like(ones), centre), nothing
    )
    assert coding_loss(wanted, (torch.ones(128).double(), 1.0), nothing) > 0
    assert coding_loss(torch.ones(128).double(), (torch.ones(128), 1.0), nothing) == pytest.approx(0)


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
