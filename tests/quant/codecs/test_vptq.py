"""VPTQ uses what is known of the layer's inputs, counts its codebooks, and tunes to a stationary point."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from references import vptq_torch

from edgepack.errors import CodecError
from edgepack.quant.codecs.codec import NO_STATISTICS, Encoded, Statistics
from edgepack.quant.codecs.decode import decode
from edgepack.quant.codecs.registry import open_decoder
from edgepack.quant.codecs.vptq import codebook as vptq_codebook
from edgepack.quant.codecs.vptq import encode as encoding
from edgepack.quant.codecs.vptq.codebook import kmeans, nearest, tune
from edgepack.quant.codecs.vptq.codec import VPTQ
from edgepack.quant.codecs.vptq.coder import Books, VectorCoder
from edgepack.quant.codecs.vptq.geometry import choose_geometry
from edgepack.quant.feedback import feedback_factor, feedback_sweep

RNG = np.random.default_rng(21)
WEIGHT = RNG.standard_normal((96, 64)).astype(np.float32)
INPUTS = RNG.standard_normal((500, 64)) @ (np.eye(64) + 0.15 * RNG.standard_normal((64, 64)))
HESSIAN = (INPUTS.T @ INPUTS / 500).astype(np.float32)


def output_error(decoded: np.ndarray) -> float:
    error = (WEIGHT - decoded).astype(np.float64)
    return float(np.einsum("ij,jk,ik->", error, HESSIAN, error))


def test_error_feedback_and_tuning_lower_the_error_of_the_layers_output() -> None:
    blind = output_error(decode(VPTQ(2).encode(WEIGHT)))
    weighted = output_error(decode(VPTQ(2).encode(WEIGHT, Statistics(np.diagonal(HESSIAN).copy()))))
    untuned = output_error(decode(VPTQ(2, tuning=0).encode(WEIGHT, Statistics(hessian=HESSIAN))))
    tuned = output_error(decode(VPTQ(2, tuning=2).encode(WEIGHT, Statistics(hessian=HESSIAN))))
    assert weighted <= blind * 1.02
    assert untuned < 0.9 * blind
    assert tuned < untuned


def test_the_residual_stage_lowers_the_error_of_the_main_stage() -> None:
    two = VPTQ(4, vector=2, residual="yes", normalise="none").encode(WEIGHT)
    assert two.parameters["centroids"] == two.parameters["residual_centroids"] == 16
    alone = {**two.parameters, "residual_centroids": 0}
    main = {name: array for name, array in two.components.items() if not name.startswith("residual")}
    coarse = decode(Encoded("vptq", 1, two.shape, alone, main))
    assert ((decode(two) - WEIGHT) ** 2).sum() < 0.3 * ((coarse - WEIGHT) ** 2).sum()


def test_outlier_columns_are_the_most_important_ones_and_keep_less_error() -> None:
    importance = np.ones(64)
    importance[[3, 40, 41]] = 50
    encoded = VPTQ(2, outliers=0.05).encode(WEIGHT, Statistics(importance))
    assert encoded.components["outlier_columns"].tolist() == [3, 40, 41]
    error = ((decode(encoded) - WEIGHT) ** 2).mean(axis=0)
    assert error[[3, 40, 41]].mean() < 0.7 * np.delete(error, [3, 40, 41]).mean()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_geometry_counts_the_codebook(bits: int) -> None:
    small, large = choose_geometry((64, 64), VPTQ(bits)), choose_geometry((8192, 8192), VPTQ(bits))
    assert small.vector <= large.vector
    for geometry, shape in ((small, (64, 64)), (large, (8192, 8192))):
        total = 8 * sum(component.nbytes for component in geometry.layout(shape).values()) / (shape[0] * shape[1])
        assert bits <= total <= bits + 0.3


def test_tuned_centroids_solve_the_normal_equations() -> None:
    """No centroid can be moved in any direction without a larger loss."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 8, (5, 64), generator=generator)
    target = torch.randn(5, 2, 64, generator=generator)
    hessian = torch.from_numpy(HESSIAN).double()
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0], dtype=torch.float64)

    def loss(book: torch.Tensor) -> float:
        error = target.double() - book.double()[index].transpose(1, 2)
        return float((torch.einsum("gvi,ij,gvj->g", error, hessian, error) * weights).sum())

    best = tune(torch.zeros(8, 2), index, target, hessian.float(), weights)
    for centroid in range(8):
        for step in (0.01, -0.01):
            moved = best.clone()
            moved[centroid, 0] += step
            assert loss(best) < loss(moved)


def test_kmeans_finds_separate_clusters_and_weighs_them() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = centres.repeat(50, 1) + 0.1 * torch.randn(200, 2, generator=torch.Generator().manual_seed(3))
    found = kmeans(points, torch.ones(200), 4)
    assert torch.allclose(found[nearest(centres, found)], centres, atol=0.1)
    assert sorted(nearest(centres, found).tolist()) == [0, 1, 2, 3]


def test_nearest_equals_a_plain_search() -> None:
    generator = torch.Generator().manual_seed(4)
    points, centroids = torch.randn(300, 3, generator=generator), torch.randn(17, 3, generator=generator)
    assert torch.equal(nearest(points, centroids), torch.cdist(points, centroids).argmin(1))


@pytest.mark.parametrize("length", [1, 2, 3, 7, 16])
def test_the_searching_kernel_equals_the_search_in_torch(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    points, centroids = torch.randn(77, length, generator=generator), torch.randn(21, length, generator=generator)
    assert torch.equal(nearest(points, centroids), vptq_torch.nearest(points, centroids))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("count", [1, 64, 65, 6400])
def test_a_leaf_order_names_every_vector_once_and_leaves_are_narrow(length: int, count: int) -> None:
    points = np.random.default_rng(length).standard_normal((count, length)).astype(np.float32)
    points[::7] = points[0]
    order = vptq_codebook._leaf_order(points)
    assert sorted(order) == list(range(count))
    if count > 64 * 2**length:
        leaves = points[order].reshape(-1, 64, length)
        assert np.ptp(leaves, axis=1).mean() < 0.6 * np.ptp(points, axis=0).mean()


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("count", [2, 64, 1000])
@pytest.mark.parametrize("ordered", [False, True])
def test_a_search_by_leaves_finds_what_a_search_of_all_finds(length: int, count: int, ordered: bool) -> None:
    """Without order leaves are as wide as everything, and lists are full."""
    generator = torch.Generator().manual_seed(length)
    points, book = torch.randn(999, length, generator=generator), torch.randn(count, length, generator=generator)
    book[-1] = book[0]
    points[5] = 1e4
    array = points.numpy()[vptq_codebook._leaf_order(points.numpy())] if ordered else points.numpy()
    searched = vptq_codebook.searchable(book)
    expected = vptq_codebook._search(array, searched)
    np.testing.assert_array_equal(vptq_codebook._search_leaves(array, searched), expected)


@pytest.mark.parametrize("columns", [1, 63, 513, 1100])
def test_normal_equations_are_those_of_one_hot_indices(columns: int) -> None:
    generator = np.random.default_rng(columns)
    index = generator.integers(0, 9, (3, columns))
    inputs = generator.standard_normal((50, columns)).astype(np.float32)
    hessian, weights = inputs.T @ inputs, generator.uniform(0, 2, 3)
    found = vptq_codebook._normal_equations(
        torch.from_numpy(index), torch.from_numpy(weights), torch.from_numpy(hessian), 9
    )
    hot = np.eye(9)[index]
    expected = np.einsum("g,gia,ij,gjb->ab", weights, hot, hessian.astype(np.float64), hot, optimize=True)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("outliers", [0, 9])
@pytest.mark.parametrize("residual", [False, True])
def test_the_sweeping_kernel_rounds_as_the_sweep_by_columns_does(outliers: int, residual: bool) -> None:
    """37 groups of 3 rows are two tiles and some; 200 columns are two blocks."""
    generator = torch.Generator().manual_seed(outliers)
    weight, inputs = torch.randn(111, 200, generator=generator), torch.randn(900, 200, generator=generator)
    hessian = inputs.T @ inputs / 900 + 0.3
    outlier = torch.arange(200) < outliers
    books = Books(
        torch.randn(32, 3, generator=generator),
        0.4 * torch.randn(16, 3, generator=generator) if residual else None,
        torch.randn(64, 3, generator=generator) if outliers else None,
    )
    factor = feedback_factor(hessian)
    coder = VectorCoder(weight, (torch.ones(200), torch.ones(111), hessian), outlier, 3, factor)
    found, left = coder.sweep(books)
    rounder = vptq_torch.VectorRounder(books, outlier, 37)
    expected = feedback_sweep(weight, factor, rounder).weights
    # A sum in another order may move a vector that lies between two centroids, and then those after it.
    assert (found.index == rounder.index).float().mean() > 0.97
    assert (found.residual_index == rounder.residual_index).float().mean() > 0.97
    assert ((left - rounder.left).abs() < 1e-3).float().mean() > 0.97
    assert found.loss == pytest.approx(coder.loss(expected), rel=0.02)


@pytest.mark.parametrize(
    "options",
    [VPTQ(3, normalise=kind) for kind in ("none", "row", "column")] + [VPTQ(4, vector=4, residual="yes", outliers=0.1)],
)
@pytest.mark.parametrize("known", [False, True])
def test_a_large_matrix_is_coded_by_pieces_about_as_well(
    options: VPTQ, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    weight = (rng.standard_normal((1000, 64)) * rng.uniform(0.5, 2, (1000, 1))).astype(np.float32)
    statistics = Statistics(hessian=HESSIAN) if known else NO_STATISTICS
    whole = options.encode(weight, statistics)
    monkeypatch.setattr(encoding, "_WHOLE_WEIGHTS", 1000)
    monkeypatch.setattr(encoding, "_SAMPLE_WEIGHTS", 3 * 120 * 64)
    monkeypatch.setattr(encoding, "_SAMPLE_GROUP", 120)
    monkeypatch.setattr(encoding, "_PIECE_WEIGHTS", 9000)
    pieces = options.encode(weight, statistics)

    def lost(encoded: Encoded) -> float:
        error = (weight - open_decoder(encoded).rows(0, 1000)).astype(np.float64)
        return float(np.einsum("ij,jk,ik->", error, HESSIAN if known else np.eye(64), error))

    assert {key: part.size for key, part in pieces.components.items()} == {
        key: part.size for key, part in whole.components.items()
    }
    assert lost(pieces) < 1.5 * lost(whole)


def test_impossible_geometry_is_refused() -> None:
    encoded = VPTQ(2, outliers=0.05).encode(WEIGHT, Statistics(np.arange(1.0, 65)))

    def opened(parameters: dict[str, object], components: dict[str, object] = {}) -> None:  # noqa: B006
        merged = {**encoded.components, **components}
        open_decoder(Encoded("vptq", 1, encoded.shape, {**encoded.parameters, **parameters}, merged))  # type: ignore[dict-item]

    opened({})
    for key, value in (("centroids", 3), ("centroids", 1), ("vector", 17), ("outliers", 64), ("residual_centroids", 1)):
        with pytest.raises(CodecError, match=key):
            opened({key: value})
    for columns in ([5, 4, 9], [-1, 4, 9], [1, 2, 64], [7, 7, 9]):
        with pytest.raises(CodecError, match="outlier_columns"):
            opened({}, {"outlier_columns": np.array(columns, np.int32)})
