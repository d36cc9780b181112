"""The seed search is exact: its bound misses nothing that a plain loop over all seeds would find."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from edgepack.quant.codecs.codec import Encoded, Statistics
from edgepack.quant.codecs.decode import decode
from edgepack.quant.codecs.seedlm import lfsr
from edgepack.quant.codecs.seedlm.basis import seed_basis
from edgepack.quant.codecs.seedlm.codec import SeedLM
from edgepack.quant.codecs.seedlm.weighted import weighted_factors

WEIGHT = np.random.default_rng(7).standard_normal((4, 24)).astype(np.float32)


def plain_search(block: np.ndarray, matrices: np.ndarray, roots: np.ndarray) -> float:
    """Least weighted squared error over all seeds, roundings of the least-squares coefficients and two exponents."""
    best = np.inf
    for matrix in matrices.astype(np.float64) * roots[:, None]:
        if np.linalg.cond(matrix) > 100:
            continue
        target = block * roots
        solution = np.linalg.lstsq(matrix, target, rcond=None)[0]
        top = np.ceil(np.log2(np.abs(solution).max() / 7.5))
        for exponent, corner in itertools.product((top, top - 1), itertools.product((0, 1), repeat=matrix.shape[1])):
            q = np.clip(np.floor(solution / 2.0**exponent) + corner, -8, 7)
            best = min(best, float(((target - matrix @ q * 2.0**exponent) ** 2).sum()))
    return best


@pytest.mark.parametrize("weighted", [False, True])
def test_no_seed_is_better_than_the_one_that_is_found(weighted: bool) -> None:
    importance = np.linspace(0.1, 3, 24) if weighted else None
    decoded = decode(SeedLM(8, 3, 8).encode(WEIGHT, Statistics(importance)))
    weights = np.ones(24) if importance is None else importance / importance.mean()
    for row, column in itertools.product(range(4), range(0, 24, 8)):
        part = slice(column, column + 8)
        expected = plain_search(WEIGHT[row, part].astype(np.float64), lfsr.matrices(8, 8, 3), np.sqrt(weights[part]))
        got = (weights[part] * (WEIGHT[row, part] - decoded[row, part]) ** 2).sum()
        assert got == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("block", "coefficients", "bits"), [(8, 3, 4.0), (12, 4, 3.0)])
def test_bits_per_weight_are_exact(block: int, coefficients: int, bits: float) -> None:
    codec = SeedLM(block, coefficients)
    layout = codec.layout((512, 768), codec.parameters(0))
    assert 8 * sum(component.nbytes for component in layout.values()) / (512 * 768) == bits


def test_the_full_register_reaches_the_papers_error_on_gaussian_weights() -> None:
    weight = np.random.default_rng(11).standard_normal((16, 512)).astype(np.float32)
    decoded = decode(SeedLM().encode(weight))
    assert ((weight - decoded) ** 2).sum() / (weight**2).sum() <= 1.56e-2


def test_importance_moves_error_to_columns_that_matter_less() -> None:
    weight = np.random.default_rng(12).standard_normal((64, 32)).astype(np.float32)
    importance = np.where(np.arange(32) % 4 == 0, 10.0, 0.5)
    plain, weighted = (decode(SeedLM(8, 3, 10).encode(weight, Statistics(h))) for h in (None, importance))
    assert (importance * (weight - weighted) ** 2).sum() < 0.9 * (importance * (weight - plain) ** 2).sum()


def test_blocks_far_smaller_than_the_largest_fit_into_the_common_range_of_exponents() -> None:
    weight = np.ones((1, 24), np.float32)
    weight[0, 8:16] = 1e-30
    weight[0, 16:] = 1e4
    decoded = decode(SeedLM(register_bits=8).encode(weight))
    assert np.allclose(decoded[0, :8], 1, atol=0.7)
    assert np.allclose(decoded[0, 16:], 1e4, rtol=0.2)
    assert np.abs(decoded[0, 8:16]).max() < 1


def relative_error(weight: np.ndarray, encoded: Encoded) -> float:
    return float(np.linalg.norm(weight - decode(encoded)) / np.linalg.norm(weight))


@pytest.mark.slow
def test_the_pruned_search_loses_at_most_one_per_cent() -> None:
    weight = np.random.default_rng(13).standard_normal((256, 384)).astype(np.float32)
    exhaustive, pruned = (relative_error(weight, SeedLM(search=s).encode(weight)) for s in ("exhaustive", "pruned"))
    assert exhaustive <= pruned <= 1.01 * exhaustive


@pytest.mark.slow
@pytest.mark.parametrize(("spread", "most"), [(1.0, 1.03), (30.0, 1.06)])
def test_the_pruned_search_measures_by_the_weights_of_columns(spread: float, most: float) -> None:
    generator = np.random.default_rng(15)
    weight = generator.standard_normal((1024, 32)).astype(np.float32)
    importance = np.exp(generator.uniform(0, np.log(spread), 32))

    def loss(search: str, known: np.ndarray | None) -> float:
        decoded = decode(SeedLM(search=search).encode(weight, Statistics(known)))
        return float((importance * (weight - decoded) ** 2).sum())

    every, some = loss("exhaustive", importance), loss("pruned", importance)
    assert every <= some <= most * every
    if spread > 1:
        assert loss("pruned", None) > 1.2 * some


def test_blocks_with_columns_that_are_never_active_try_every_seed() -> None:
    weight = np.random.default_rng(16).standard_normal((64, 16)).astype(np.float32)
    importance = np.array([1.0, 2.0, 0, 0, 0, 0, 0, 0, *[1.0] * 8])
    some, every = (decode(SeedLM(search=s).encode(weight, Statistics(importance))) for s in ("pruned", "exhaustive"))
    assert (some[:, :8] == every[:, :8]).all()
    assert ((weight - some)[:, :2] ** 2).mean() < 1e-3


def test_a_pairs_factors_are_those_of_every_seed_under_the_same_weights() -> None:
    root = np.sqrt(np.linspace(0.2, 3, 8)).astype(np.float32)
    basis = seed_basis(8, 3, 8, "cpu", root)
    pairs = weighted_factors(basis.matrices / torch.from_numpy(root).repeat_interleave(3), torch.from_numpy(root)[None]
                             .expand(len(basis.seeds), -1), 3)  # fmt: skip
    assert torch.allclose(pairs, basis.factors, atol=1e-5)


def test_large_models_are_searched_by_likely_seeds_alone_and_told_so() -> None:
    small, quiet = SeedLM().suited_to(10**9 - 1)
    large, note = SeedLM().suited_to(8 * 10**9)
    assert (small.search, quiet, large.search) == ("exhaustive", "", "pruned")
    assert "8.0 B weights" in note
    assert SeedLM(search="exhaustive").suited_to(10**10) == (SeedLM(search="exhaustive"), "")


@pytest.mark.slow
def test_matrices_that_are_coded_together_lose_nothing() -> None:
    generator = np.random.default_rng(14)
    weights = [generator.standard_normal(shape).astype(np.float32) for shape in ((64, 100), (3, 7), (200, 64))]
    weights.append(np.zeros((4, 8), np.float32))
    codec = SeedLM(search="pruned")
    together = codec.encode_together(weights)
    for weight, encoded in zip(weights[:3], together, strict=False):
        assert relative_error(weight, encoded) <= 1.02 * relative_error(weight, codec.encode(weight))
    assert not decode(together[3]).any()


def test_an_exhaustive_search_is_the_same_alone_and_together() -> None:
    codec = SeedLM(register_bits=8)
    alone, together = codec.encode(WEIGHT), codec.encode_together([WEIGHT, WEIGHT[:1]])
    for name, array in alone.components.items():
        assert (array == together[0].components[name]).all()
    assert (decode(together[1]) == decode(alone)[:1]).all()
