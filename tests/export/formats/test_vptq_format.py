"""VPTQ's own packing: one weight computed index by index, whatever its sizes, gives the same matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from edgepack.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Read = Callable[[Mapping[str, torch.Tensor], object], np.ndarray]


def settings(**changes: Any) -> dict[str, Any]:
    layer = {
        "in_features": 20, "out_features": 14, "vector_lens": [-1, 4], "num_centroids": [-1, 64],
        "num_res_centroids": [-1, -1], "group_num": 1, "group_size": 20, "outlier_size": 0, "is_indice_packed": True,
    }  # fmt: skip
    return {"quant_method": "vptq", "config_for_layers": {"layer": {**layer, **changes}}}


def packed(main: np.ndarray, residual: np.ndarray, main_bits: int, residual_bits: int) -> torch.Tensor:
    """Words of (residual << b) | main along the last dimension, by Python's big integers."""
    width = main_bits + residual_bits
    words = np.zeros((*main.shape[:2], -(-main.shape[2] * width // 32)), dtype=np.uint32)
    for book, vector in np.ndindex(main.shape[:2]):
        pairs = zip(main[book, vector], residual[book, vector], strict=True)
        stream = sum((int(r) << main_bits | int(m)) << (width * at) for at, (m, r) in enumerate(pairs))
        words[book, vector] = [stream >> (32 * word) & 0xFFFFFFFF for word in range(words.shape[2])]
    return torch.from_numpy(words.view(np.int32))


def made(
    *, residual: bool, outliers: int, books: int, perm: bool
) -> tuple[dict[str, torch.Tensor], dict[str, Any], np.ndarray]:
    """Stored tensors, their settings, and the weight by the definition."""
    generator = np.random.default_rng(8)
    outer, inner, vector, k1, k2, outlier_vector, k0 = 14, 20, 4, 64, 16 if residual else 0, 2, 8
    group = (inner - outliers) // books
    groups = -(-outer // vector)
    main = generator.integers(0, k1, (books, groups, group))
    second = generator.integers(0, max(k2, 1), (books, groups, group))
    book1 = generator.standard_normal((books, k1, vector)).astype(np.float16)
    book2 = generator.standard_normal((books, max(k2, 1), vector)).astype(np.float16)
    book0 = generator.standard_normal((1, k0, outlier_vector)).astype(np.float16)
    index0 = generator.integers(0, k0, (1, -(-outer // outlier_vector), max(outliers, 1)))
    weight = np.zeros((outer, inner), dtype=np.float64)
    for row, column in np.ndindex(outer, inner):
        if column < outliers:
            weight[row, column] = book0[0, index0[0, row // outlier_vector, column], row % outlier_vector]
            continue
        book, place = divmod(column - outliers, group)
        weight[row, column] = book1[book, main[book, row // vector, place], row % vector]
        if residual:
            weight[row, column] += book2[book, second[book, row // vector, place], row % vector]
    scale, bias = (
        generator.uniform(0.5, 2, inner).astype(np.float32),
        generator.standard_normal(inner).astype(np.float32),
    )
    order = generator.permutation(inner) if perm else np.arange(inner)
    placed = np.empty_like(weight)
    placed[:, order] = weight  # column i of the stored order belongs at order[i]
    tensors = {
        "layer.indices": packed(main, second, 6, 4 if residual else 0),
        "layer.centroids.weight": torch.from_numpy(book1.reshape(books, -1)),
        "layer.weight_scale": torch.from_numpy(scale),
        "layer.weight_bias": torch.from_numpy(bias),
    }
    if perm:
        tensors["layer.perm"] = torch.from_numpy(order.astype(np.uint16).view(np.int16))
    if residual:
        tensors["layer.res_centroids.weight"] = torch.from_numpy(book2.reshape(books, -1))
    if outliers:
        tensors["layer.outlier_indices"] = torch.from_numpy(index0.astype(np.int16))
        tensors["layer.outlier_centroids.weight"] = torch.from_numpy(book0.reshape(1, -1))
    config = settings(
        group_num=books, outlier_size=outliers, num_res_centroids=[-1, k2 or -1],
        vector_lens=[outlier_vector if outliers else -1, vector], num_centroids=[k0 if outliers else -1, k1],
    )  # fmt: skip
    return tensors, config, placed * scale + bias


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("outliers", "books"), [(0, 1), (0, 2), (4, 1), (4, 2)])
@pytest.mark.parametrize("perm", [False, True])
def test_weights_are_what_the_definition_says(
    read_back: Read, residual: bool, outliers: int, books: int, perm: bool
) -> None:
    tensors, config, expected = made(residual=residual, outliers=outliers, books=books, perm=perm)
    assert np.allclose(read_back(tensors, config), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"vector_quant_dim": "in"}, UnsupportedModelError),
        ({"is_indice_packed": False}, UnsupportedModelError),
        ({"num_centroids": [-1, 1]}, CheckpointError),
        ({"num_centroids": 64}, CheckpointError),
        ({"vector_lens": [-1, 0]}, CheckpointError),
        ({"group_num": 3}, CheckpointError),
        ({"group_num": "one"}, CheckpointError),
        ({"out_features": 4000}, CheckpointError),
        ({"in_features": 21}, CheckpointError),
    ],
)
def test_settings_that_contradict_the_tensors_are_refused(
    read_back: Read, changes: dict[str, Any], error: type[Exception]
) -> None:
    tensors, config, _ = made(residual=False, outliers=0, books=1, perm=True)
    config["config_for_layers"]["layer"].update(changes)
    with pytest.raises(error):
        read_back(tensors, config)


def test_impossible_values_are_refused_by_name(read_back: Read) -> None:
    tensors, config, _ = made(residual=False, outliers=0, books=1, perm=True)
    twice = {**tensors, "layer.perm": torch.zeros(20, dtype=torch.int16)}
    with pytest.raises(CheckpointError, match=r"layer\.perm"):
        read_back(twice, config)
    config["config_for_layers"]["layer"]["num_centroids"] = [-1, 33]
    short = {**tensors, "layer.centroids.weight": tensors["layer.centroids.weight"][:, : 33 * 4].contiguous()}
    with pytest.raises(CheckpointError, match="of 33 centroids"):
        read_back(short, config)
    with pytest.raises(CheckpointError, match="config_for_layers lacks 'layer'"):
        read_back(tensors, {"quant_method": "vptq", "config_for_layers": {}})
