"""Products in the model's own type, against float64 and against float32: on any processor, whatever it is made for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from edgepack.errors import UsageError
from edgepack.quant.calibration import own_labels, products
from edgepack.quant.calibration.blocks import BlockwiseModel
from edgepack.quant.calibration.collect import collect
from edgepack.quant.calibration.curvature import measure
from edgepack.quant.calibration.products import (
    as_multiplied,
    layers_multiply_in,
    own_products,
    summed_products,
    sums_stay_float32,
)
from edgepack.quant.calibration.sweep import sweep

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.model import Checkpoint
    from edgepack.quant.calibration.curvature import Curvature

CPU = torch.device("cpu")
# Families whose blocks multiply by other ways than linear layers: Conv1D, gates, fused and biased ones, ALiBi.
FAMILIES = ["llama", "qwen3", "gemma2", "phi3", "gpt_neox", "gpt2", "falcon", "bloom"]


def _with_units(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(products, "has_bfloat16_units", lambda: there)


@pytest.mark.parametrize(
    ("config", "device", "units", "expected"),
    [
        ({"dtype": "bfloat16"}, "cpu", True, torch.bfloat16),
        ({"torch_dtype": "bfloat16"}, "cpu", True, torch.bfloat16),
        ({"text_config": {"dtype": "bfloat16"}}, "cpu", True, torch.bfloat16),
        ({"dtype": "float16"}, "cpu", True, torch.float32),
        ({"dtype": "float32", "text_config": None}, "cpu", True, torch.float32),
        ({}, "cpu", True, torch.float32),
        ({"dtype": "bfloat16"}, "cuda", True, torch.float32),
        ({"dtype": "bfloat16"}, "cpu", False, torch.float32),
    ],
)
def test_products_are_bfloat16_where_model_and_processor_both_are_made_for_it(
    config: dict[str, Any], device: str, units: bool, expected: Any, books: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_units(monkeypatch, units)
    assert own_products(replace(books, config=config), device) == expected


@pytest.mark.parametrize("told", ["float32", "bfloat16"])
def test_the_environment_decides_whatever_the_processor_is(
    told: str, books: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(products.TOLD, told)
    for units in (False, True):
        _with_units(monkeypatch, units)
        assert own_products(books) == getattr(torch, told)


def test_a_type_that_is_none_is_refused_by_name(books: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(products.TOLD, "int8")
    with pytest.raises(UsageError, match="EDGEPACK_PRODUCTS: expected float32 or bfloat16, got 'int8'"):
        own_products(books)


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "inside-layers"])
def test_moments_of_bfloat16_are_exact_products_summed_in_float32(inside: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(300, width, generator=generator).bfloat16() for width in (48, 33))
    with layers_multiply_in(torch.bfloat16 if inside else torch.float32, CPU):
        found = summed_products(left, right)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), left.double().T @ right.double(), rtol=1e-5, atol=1e-4)


def test_moments_of_float32_and_float64_are_not_rounded_inside_layers() -> None:
    values = torch.randn(200, 16, generator=torch.Generator().manual_seed(2))
    with layers_multiply_in(torch.bfloat16, CPU):
        single, double = summed_products(values, values), summed_products(values.double(), values.double())
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-4)
    assert double.dtype == torch.float64


def test_what_layers_see_is_rounded_inside_only() -> None:
    values = torch.full((3,), 1.001)
    assert as_multiplied(values).dtype == torch.float32
    with layers_multiply_in(torch.bfloat16, CPU):
        assert as_multiplied(values).dtype == torch.bfloat16
        assert as_multiplied(values.double()).dtype == torch.float64


def test_the_processes_precision_is_put_back_even_after_an_error() -> None:
    before = torch.get_float32_matmul_precision()
    seen = []

    def failing() -> None:
        with sums_stay_float32(torch.bfloat16):
            seen.append(torch.get_float32_matmul_precision())
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert seen == ["medium"]
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_in_bfloat16_close_to_float32(family: str, tiny: Any, tokens: NDArray[np.int64]) -> None:
    checkpoint, _model = tiny(family)
    ids = torch.from_numpy(tokens)
    exact, own = (
        sweep(BlockwiseModel(checkpoint, products=kind), ids, lambda _visit: None)
        for kind in (torch.float32, torch.bfloat16)
    )
    assert own.dtype == torch.float32
    error = float((own - exact).norm() / exact.norm())
    assert 0 < error < 0.02


def test_statistics_of_the_bundled_model_keep_within_bfloat16s_rounding(
    books: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = np.random.default_rng(3).integers(0, 4096, (4, 64))
    found = {}
    for units in (False, True):
        _with_units(monkeypatch, units)
        found[units] = collect(books, tokens, with_hessian=True).statistics
    for name, exact in found[False].items():
        own = found[True][name]
        np.testing.assert_allclose(own.mean_square, exact.mean_square, rtol=0.15, atol=1e-6, err_msg=name)
        assert own.hessian is not None
        assert exact.hessian is not None
        np.testing.assert_array_equal(own.hessian, own.hessian.T)
        assert np.linalg.norm(own.hessian - exact.hessian) < 0.01 * np.linalg.norm(exact.hessian)
        rounded = torch.from_numpy(own.hessian).bfloat16().float().numpy()
        assert (rounded != own.hessian).mean() > 0.9  # summed and kept in more than bfloat16 has


def test_curvature_of_the_bundled_model_says_the_same_of_the_same_labels(
    books: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, drawn = np.random.default_rng(4).integers(0, 4096, (8, 128)), list[torch.Tensor]()
    draw = own_labels.draw_labels
    monkeypatch.setattr(own_labels, "draw_labels", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    exact = _curvature(books, tokens, tmp_path / "float32", monkeypatch, units=False)
    again = iter(drawn)
    monkeypatch.setattr(own_labels, "draw_labels", lambda *_given: next(again))
    own = _curvature(books, tokens, tmp_path / "bfloat16", monkeypatch, units=True)
    assert exact.keys() == own.keys()
    for name, expected in exact.items():
        assert own[name].outputs.dtype == torch.float32
        assert float(own[name].outputs.mean()) == pytest.approx(float(expected.outputs.mean()), rel=0.25), name
        assert torch.corrcoef(torch.stack([own[name].outputs, expected.outputs]))[0, 1] > 0.9, name


def _curvature(
    books: Checkpoint, tokens: NDArray[np.int64], folder: Path, monkeypatch: pytest.MonkeyPatch, *, units: bool
) -> dict[str, Curvature]:
    _with_units(monkeypatch, units)
    return {name: value for part in measure(books, tokens, folder) for name, value in part.items()}


def test_statistics_kept_in_one_type_are_not_taken_for_the_others(
    books: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, kept = np.random.default_rng(5).integers(0, 4096, (2, 32)), tmp_path / "kept.safetensors"
    found = []
    for told in ("float32", "bfloat16", "bfloat16"):
        monkeypatch.setenv(products.TOLD, told)
        found.append(collect(books, tokens, save_to=kept).about["key"])
    assert found[0] != found[1] == found[2]
