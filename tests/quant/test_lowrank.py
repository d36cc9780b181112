"""Low-rank factors against the theory: Eckart and Young, whitening, and corrections that only get better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from edgepack.model import read_tensor
from edgepack.quant.calibration.blocks import whole_model
from edgepack.quant.passes.lowrank.factors import centred_svd, correction, rank_for_variance, whitened_svd
from edgepack.quant.passes.lowrank.weights import LowRankSettings, factorise
from edgepack.quant.passes.run import PassRun

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture(params=[20, 9], ids=["tall", "wide"])
def weight(request: pytest.FixtureRequest) -> NDArray[np.float32]:
    """[rows, 12]: factors of a tall matrix come from its columns, of a wide one from its rows."""
    return np.random.default_rng(0).standard_normal((request.param, 12)).astype(np.float32) + 0.5


@pytest.fixture
def hessian() -> NDArray[np.float32]:
    generator = np.random.default_rng(1)
    inputs = generator.standard_normal((80, 12)) @ generator.standard_normal((12, 12))
    return (inputs.T @ inputs / 80).astype(np.float32)


def output_error(error: NDArray[np.float32], hessian: NDArray[np.float32]) -> float:
    return float(np.sum((error @ hessian) * error))


def test_all_ranks_give_the_matrix_back(weight: NDArray[np.float32], hessian: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(centred_svd(weight, rank=12).dense(), weight, atol=1e-5)
    np.testing.assert_allclose(whitened_svd(weight, hessian, rank=12).dense(), weight, atol=1e-3)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_centred_error_is_what_eckart_and_young_say(weight: NDArray[np.float32], rank: int) -> None:
    singular = np.linalg.svd(weight - weight.mean(0), compute_uv=False)
    error = weight - centred_svd(weight, rank=rank).dense()
    assert float(np.square(error).sum()) == pytest.approx(float((singular[rank:] ** 2).sum()), rel=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_whitening_is_best_for_the_outputs(
    weight: NDArray[np.float32], hessian: NDArray[np.float32], rank: int
) -> None:
    """The optimum is known: the tail of the singular values of W·H^½; any other factors are worse."""
    values, vectors = np.linalg.eigh(hessian.astype(np.float64))
    singular = np.linalg.svd(weight @ (vectors * np.sqrt(np.maximum(values, 0))), compute_uv=False)
    whitened = output_error(weight - whitened_svd(weight, hessian, rank=rank).dense(), hessian)
    assert whitened == pytest.approx(float((singular[rank:] ** 2).sum()), rel=1e-3)
    left, middle, right = np.linalg.svd(weight, full_matrices=False)
    plain = (left[:, :rank] * middle[:rank]) @ right[:rank]
    assert whitened < output_error(weight - plain, hessian)


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_the_exact_correction_beats_the_diagonal_one_and_that_beats_none(
    weight: NDArray[np.float32], hessian: NDArray[np.float32], rank: int
) -> None:
    error = weight - np.round(weight * 2) / 2
    exact = error - correction(error, hessian, rank).dense()
    diagonal = error - correction(error, np.diag(hessian).copy(), rank).dense()
    losses = [output_error(left, hessian) for left in (exact, diagonal, error)]
    assert losses == sorted(losses)


def test_a_diagonal_covariance_makes_both_corrections_equal(weight: NDArray[np.float32]) -> None:
    moment = np.linspace(0.1, 4, 12).astype(np.float32)
    full, diagonal = correction(weight, np.diag(moment), 4), correction(weight, moment, 4)
    np.testing.assert_allclose(full.dense(), diagonal.dense(), atol=1e-4)


def test_channels_that_are_never_active_do_not_break_a_correction(weight: NDArray[np.float32]) -> None:
    moment = np.ones(12, np.float32)
    moment[5] = 0
    assert np.isfinite(correction(weight, moment, 3).dense()).all()
    assert np.isfinite(correction(weight, np.diag(moment), 3).dense()).all()


@pytest.mark.parametrize(("variance", "rank"), [(0.0, 1), (0.5, 1), (0.8, 1), (0.81, 2), (0.95, 2), (1.0, 3)])
def test_the_rank_for_a_share_of_the_variance(variance: float, rank: int) -> None:
    assert rank_for_variance(np.sqrt(np.array([0.8, 0.15, 0.05])), variance) == rank


@pytest.mark.parametrize("method", ["svd", "whitened"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_factors_apart_are_the_factors_multiplied_back(
    method: Any, family: str, tiny: Any, tokens: NDArray[np.int64], tmp_path: Path
) -> None:
    checkpoint, _ = tiny(family)
    run = PassRun(tmp_path, tokens)
    dense = factorise(checkpoint, LowRankSettings(method, rank=4), run).checkpoint
    apart = factorise(checkpoint, LowRankSettings(method, rank=4, apart=True), PassRun(tmp_path / "2", tokens))
    assert apart.low_rank
    for name, (left, right) in apart.low_rank.items():
        assert left.shape[1] == right.shape[0] == 4
        together = read_tensor(apart.checkpoint.tensors, name) + left @ right
        np.testing.assert_allclose(together, read_tensor(dense.tensors, name), atol=1e-4)


def test_keeping_all_variance_keeps_the_model(tiny: Any, tokens: NDArray[np.int64], tmp_path: Path) -> None:
    checkpoint, model = tiny("llama")
    outcome = factorise(checkpoint, LowRankSettings("svd", variance=1.0), PassRun(tmp_path))
    ids = torch.from_numpy(tokens)
    torch.testing.assert_close(whole_model(outcome.checkpoint)(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-3)
    assert outcome.figures["kept_variance"] == pytest.approx(1.0, abs=1e-5)


def test_a_singular_covariance_is_damped_and_still_corrects(weight: NDArray[np.float32]) -> None:
    inputs = np.random.default_rng(2).standard_normal((4, 12)).astype(np.float32)  # fewer tokens than channels
    moment = inputs.T @ inputs / 4
    left = weight - correction(weight, moment, 4).dense()
    assert np.isfinite(left).all()
    assert output_error(left, moment) < 1e-3 * output_error(weight, moment)
