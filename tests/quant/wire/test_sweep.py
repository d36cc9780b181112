"""The kernel's sweep against the one in torch, written after the formula; the same bits however it is cut."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edgepack.kernels.native import library
from edgepack.trellis import STATES, TrellisCode

torch = pytest.importorskip("torch")

from edgepack.quant.feedback import feedback_factor  # noqa: E402
from edgepack.quant.wire.factor import SweepFactor, twelve_bits  # noqa: E402
from edgepack.quant.wire.grid import Lattice, half  # noqa: E402
from edgepack.quant.wire.lanes import Lanes, TrellisRounding  # noqa: E402
from edgepack.quant.wire.rates import RateModel  # noqa: E402
from edgepack.quant.wire.rounding import round_matrix  # noqa: E402
from edgepack.quant.wire.sweep import sweep  # noqa: E402
from edgepack.quant.wire.torch_sweep import sweep_torch  # noqa: E402


def problem(
    rows: int, columns: int, states: int, *, limit: int = 127, step: float = 0.3, group: int = 32, seed: int = 0,
    rungs: int = 1,
):  # fmt: skip
    """Weights of rows of very different sizes, their factor, lattice and paths."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4 * columns, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    weights = torch.randn(rows, columns, generator=generator)
    weights *= torch.exp(torch.randn(rows, 1, generator=generator))
    factor = SweepFactor.of(feedback_factor(inputs.T @ inputs / len(inputs)))
    multiples = torch.randint(1, 4, (columns,), generator=generator, dtype=torch.int32)
    factors = torch.randint(1, 3, (rows, columns // group), generator=generator, dtype=torch.int32)
    lattice = Lattice(
        half(torch.rand(rows, generator=generator) * step + step), factors, multiples, limit // multiples, 256, rungs
    )
    paths = None
    if states:
        code, rates = TrellisCode(states, 16), RateModel.of(weights, factor, lattice)
        lanes = Lanes.cut([rows // 3, rows - rows // 3], code.rows, rates.below())
        paths = TrellisRounding(code, lanes, lattice.steps.square().reciprocal(), rates)
    return weights, factor, lattice, paths


@pytest.mark.parametrize(("limit", "rungs"), [(15, 1), (15, 8), (7, 8)])
@pytest.mark.parametrize("states", [0, 8])
def test_the_kernel_raises_the_factors_that_torch_raises(states: int, limit: int, rungs: int) -> None:
    weights, factor, lattice, paths = problem(70, 96, states, limit=limit, rungs=rungs)
    found = sweep(weights, factor, lattice, paths=paths)
    expected = sweep_torch(weights, factor, lattice, paths=paths)
    assert (found.factors > lattice.factors.numpy()).mean() > 0.05
    assert (found.factors == expected.factors).mean() > 0.98
    np.testing.assert_allclose(found.losses.sum(), expected.losses.sum(), rtol=5e-3)


@pytest.mark.parametrize("pull", [0.0, 0.1])
@pytest.mark.parametrize("states", [0, *STATES])
def test_the_kernel_finds_what_torch_finds(states: int, pull: float) -> None:
    weights, factor, lattice, paths = problem(70, 96, states)
    found = sweep(weights, factor, lattice, pull=pull, paths=paths)
    expected = sweep_torch(weights, factor, lattice, pull=pull, paths=paths)
    assert found.failures == expected.failures == 0
    # A tie broken the other way changes what the rest of the lane's rows are fed; both are as good.
    assert (found.quants == expected.quants).mean() > (0.99 if pull == 0 else 0.9)
    np.testing.assert_allclose(found.losses.sum(), expected.losses.sum(), rtol=2e-3)
    np.testing.assert_array_equal(found.factors, expected.factors)


def test_losses_are_the_errors_weighted_by_the_curvature() -> None:
    weights, factor, lattice, paths = problem(40, 64, 8)
    rounded = round_matrix(weights, factor, lattice, paths=paths)
    upper = factor.dense().double()
    solved = torch.linalg.solve_triangular(upper, (weights - rounded.weights).double(), upper=True, left=False)
    np.testing.assert_allclose(rounded.losses.numpy(), solved.square().sum(1).numpy(), rtol=1e-3)


@pytest.mark.parametrize(("rows", "columns", "group"), [(300, 160, 32), (37, 80, 16), (5, 33, 1), (17, 32, 32)])
@pytest.mark.parametrize("states", [0, 8, 64])
def test_neither_instruction_sets_nor_threads_change_a_bit(states: int, rows: int, columns: int, group: int) -> None:
    weights, factor, lattice, paths = problem(rows, columns, states, group=group, limit=31, rungs=8)
    results = [
        sweep(weights, factor, lattice, paths=paths, variant=v) for v in range(library().edgepack_wire_variants())
    ]
    with ThreadPoolExecutor(3) as pool:
        results.append(sweep(weights, factor, lattice, paths=paths, pool=pool))
    for result in results[1:]:
        assert result.quants.tobytes() == results[0].quants.tobytes()
        assert result.losses.tobytes() == results[0].losses.tobytes()
        assert result.factors.tobytes() == results[0].factors.tobytes()


def test_what_stands_below_changes_nothing_above() -> None:
    weights, factor, lattice, _ = problem(96, 64, 0)
    whole = sweep(weights, factor, lattice)
    part = sweep(weights[:32].contiguous(), factor, lattice.rows(slice(0, 32)))
    assert part.quants.tobytes() == whole.quants[:32].tobytes()
    assert part.losses.tobytes() == whole.losses[:32].tobytes()


@pytest.mark.parametrize("states", [0, 8])
def test_integers_beyond_the_limit_raise_the_step_of_their_group_and_nothing_else(states: int) -> None:
    weights, factor, lattice, paths = problem(48, 64, states, limit=15)
    result = sweep(weights, factor, lattice, paths=paths)
    assert result.failures == 0
    assert (np.abs(result.quants) <= (lattice.limits * lattice.multiples).numpy()).all()
    raised = result.factors / lattice.factors.numpy()
    assert (raised > 1).any()
    assert set(np.unique(np.log2(raised))) <= set(range(9))


def test_groups_beyond_help_are_counted() -> None:
    weights, factor, lattice, _ = problem(48, 64, 0, limit=3)
    hopeless = Lattice(lattice.steps * 1e-3, lattice.factors, lattice.multiples, lattice.limits, 2)
    assert sweep(weights, factor, hopeless).failures > 0


@pytest.mark.parametrize("change", [{"limits": 40000}, {"limits": 0}, {"columns": 31}])
def test_what_the_kernel_cannot_take_is_refused(change: dict[str, int]) -> None:
    weights, factor, lattice, _ = problem(8, 64, 0)
    limits = torch.full_like(lattice.limits, change.get("limits", 5))
    columns = change.get("columns", 64)
    with pytest.raises(ValueError, match="expected integers|a sweep of 31 columns"):
        sweep(weights[:, :columns], factor, Lattice(lattice.steps, lattice.factors, lattice.multiples, limits, 256))


def test_groups_that_do_not_divide_a_panel_are_refused() -> None:
    weights, factor, lattice, _ = problem(8, 64, 0)
    wide = Lattice(lattice.steps, lattice.factors[:, :1].contiguous(), lattice.multiples, lattice.limits, 256)
    with pytest.raises(ValueError, match="groups that divide 32"):
        sweep(weights, factor, wide)


def test_twelve_bits_are_the_nearest_and_their_products_exact() -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    short = twelve_bits(values)
    assert (np.abs(short - values) <= np.abs(values) * 2.0**-12).all()
    products = short[:, None] * short[None, :]
    assert (products.astype(np.float64) == short[:, None].astype(np.float64) * short[None, :]).all()
    assert twelve_bits(np.float32([2.0**-61, -(2.0**-62)])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("columns", [32, 33, 64, 95])
def test_a_factor_is_packed_without_loss_and_kept_on_disk(columns: int, tmp_path) -> None:
    _, factor, _, _ = problem(4, columns, 0, group=1)
    exact = factor.dense()
    assert torch.equal(exact, exact.triu())
    assert SweepFactor.load(tmp_path / "none") is None
    factor.save(tmp_path / "kept")
    kept = SweepFactor.load(tmp_path / "kept")
    assert kept is not None
    assert torch.equal(kept.dense(), exact)
    (tmp_path / "kept" / "diagonal.npy").unlink()
    assert SweepFactor.load(tmp_path / "kept") is None
