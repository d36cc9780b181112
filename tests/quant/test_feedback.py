"""Error feedback against brute force on small matrices, in float64 and without any shortcut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from edgepack.errors import NumericError
from edgepack.quant.feedback import feedback_factor, feedback_sweep, invert_upper

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ToIntegers:
    """Rounds to the nearest integer; remembers what its groups looked like."""

    def __init__(self, group: int = 1) -> None:
        self.group = group
        self.seen: dict[int, torch.Tensor] = {}

    def start_group(self, start: int, weights: torch.Tensor) -> None:
        self.seen[start] = weights.clone()

    def round(self, _column: int, values: torch.Tensor) -> torch.Tensor:
        return values.round()


def random_layer(out: int = 6, columns: int = 12, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((40, columns)) @ generator.standard_normal((columns, columns))
    return 3 * generator.standard_normal((out, columns)), inputs.T @ inputs / len(inputs)


def brute_force(weights: NDArray[np.float64], hessian: NDArray[np.float64]) -> NDArray[np.float64]:
    """After each column the free columns are solved anew for the least tr((W - Q)·H·(W - Q)ᵀ)."""
    rounded, columns = weights.copy(), weights.shape[1]
    current = weights.copy()
    for column in range(columns):
        rounded[:, column] = np.round(current[:, column])
        done, free = slice(0, column + 1), slice(column + 1, columns)
        error = weights[:, done] - rounded[:, done]
        current[:, free] = weights[:, free] + error @ hessian[done, free] @ np.linalg.inv(hessian[free, free])
    return rounded


def tensor(array: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(array).float()


@pytest.mark.parametrize("seed", range(8))
def test_each_column_is_what_an_exact_solve_of_the_free_columns_gives(seed: int) -> None:
    weights, hessian = random_layer(seed=seed)
    result = feedback_sweep(tensor(weights), feedback_factor(tensor(hessian), damping=0.0), ToIntegers())
    np.testing.assert_array_equal(result.weights.numpy(), brute_force(weights, hessian))


def test_the_reported_loss_is_the_error_of_the_outputs() -> None:
    weights, hessian = random_layer()
    result = feedback_sweep(tensor(weights), feedback_factor(tensor(hessian), damping=0.0), ToIntegers())
    error = weights - result.weights.numpy()
    assert result.loss == pytest.approx(float(np.trace(error @ hessian @ error.T)), rel=1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_feedback_loses_less_than_plain_rounding(seed: int) -> None:
    weights, hessian = random_layer(out=64, seed=seed)
    error = weights - np.round(weights)
    result = feedback_sweep(tensor(weights), feedback_factor(tensor(hessian), damping=0.0), ToIntegers())
    assert result.loss < float(np.trace(error @ hessian @ error.T))


@pytest.mark.parametrize(("block", "group"), [(1, 1), (5, 1), (4, 4), (3, 4), (128, 3), (12, 12)])
def test_blocks_and_groups_do_not_change_the_result(block: int, group: int) -> None:
    weights, hessian = random_layer()
    factor = feedback_factor(tensor(hessian))
    expected = feedback_sweep(tensor(weights), factor, ToIntegers(), block=1).weights
    rounder = ToIntegers(group)
    torch.testing.assert_close(feedback_sweep(tensor(weights), factor, rounder, block=block).weights, expected)
    assert list(rounder.seen) == list(range(0, 12, group))


def test_a_group_is_shown_with_the_errors_of_earlier_columns_made_good() -> None:
    weights, hessian = random_layer()
    rounder = ToIntegers(4)
    factor = feedback_factor(tensor(hessian), damping=0.0)
    rounded = feedback_sweep(tensor(weights), factor, rounder, block=4).weights.double().numpy()
    done, free = slice(0, 4), slice(4, 12)
    error = weights[:, done] - rounded[:, done]
    exact = weights[:, free] + error @ hessian[done, free] @ np.linalg.inv(hessian[free, free])
    np.testing.assert_allclose(rounder.seen[4].numpy(), exact[:, :4], rtol=1e-3, atol=1e-3)


def test_the_input_is_not_modified() -> None:
    weights, hessian = (tensor(array) for array in random_layer())
    copies = weights.clone(), hessian.clone()
    feedback_sweep(weights, feedback_factor(hessian), ToIntegers())
    torch.testing.assert_close((weights, hessian), copies, rtol=0, atol=0)


def test_with_a_diagonal_hessian_nothing_is_fed_back() -> None:
    weights, _ = random_layer()
    factor = feedback_factor(torch.diag(torch.arange(1.0, 13.0)))
    np.testing.assert_array_equal(feedback_sweep(tensor(weights), factor, ToIntegers()).weights, np.round(weights))


def test_a_singular_hessian_is_damped_until_it_factorises_and_says_so() -> None:
    inputs = np.random.default_rng(0).standard_normal((3, 12))  # fewer tokens than channels
    factor = feedback_factor(tensor(inputs.T @ inputs), damping=0.0)
    assert factor.damping > 0
    assert torch.isfinite(factor.upper).all()


def test_dead_channels_are_reported_and_feed_nothing_back() -> None:
    _, hessian = random_layer()
    hessian[3], hessian[:, 3] = 0, 0
    factor = feedback_factor(tensor(hessian))
    assert torch.nonzero(factor.dead).flatten().tolist() == [3]
    assert not factor.upper[3, 4:].any()


def test_a_dead_model_still_factorises() -> None:
    assert feedback_factor(torch.zeros(4, 4)).dead.all()


@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (np.inf, "NaN or infinity")])
def test_a_hessian_that_is_not_finite_names_the_layer(value: float, what: str) -> None:
    hessian = torch.eye(4)
    hessian[1, 2] = value
    with pytest.raises(NumericError, match=f"layer 'blk.7.q'.*{what}"):
        feedback_factor(hessian, name="blk.7.q")


def test_a_matrix_that_is_no_hessian_is_refused() -> None:
    hessian = torch.eye(4) + 100 * (1 - torch.eye(4))
    hessian[0, 1] = hessian[1, 0] = -1000
    with pytest.raises(NumericError, match="not positive semi-definite"):
        feedback_factor(hessian)


@pytest.mark.parametrize("columns", [1, 255, 256, 257, 640, 769])
def test_a_triangle_is_inverted_by_halves_as_by_a_plain_solve(columns: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    sample = torch.randn(columns, 2 * columns + 8, generator=generator, dtype=torch.float64)
    upper = torch.linalg.cholesky(sample @ sample.T / columns).T.contiguous()
    expected = torch.linalg.solve_triangular(upper, torch.eye(columns, dtype=torch.float64), upper=True)
    invert_upper(upper)
    assert not upper.tril(-1).any()
    torch.testing.assert_close(upper, expected, rtol=1e-11, atol=1e-13)
