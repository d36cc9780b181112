"""A refined matrix is never worse than the plain encoder's, whatever it holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import GGUFError, NumericError
from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml.codec import dequantize_rows, quantize_rows
from edgepack.quant.feedback import feedback_factor
from edgepack.quant.passes.gptq import gptq_rows
from edgepack.quant.refine.rounding import REFINED_TYPES, refine_matrix, row_losses

KINDS = sorted(REFINED_TYPES)


def correlated(columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(2 * columns, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return mixed.T @ mixed / len(mixed)


@pytest.mark.parametrize("kind", KINDS)
def test_refinement_loses_less_than_the_encoder_and_less_than_feedback_alone(kind: GGMLType) -> None:
    weight, inputs, costs = torch.randn(24, 512) * 0.02, correlated(512, 1), torch.rand(24) + 0.1
    factor = feedback_factor(inputs)
    plain = row_losses(weight, kind, quantize_rows(kind, weight.numpy(), inputs.diagonal().numpy()), inputs)
    refined = refine_matrix(weight, factor, kind, inputs=inputs, row_costs=costs, threads=1)
    found = row_losses(weight, kind, refined.rows, inputs)
    assert (found <= plain).all()
    assert refined.loss < 0.9 * 0.5 * float(plain @ costs.double().numpy())
    if kind not in {GGMLType.IQ4_NL, GGMLType.IQ4_XS}:
        rows, _ = gptq_rows(weight, factor, kind, inputs.diagonal().numpy())
        assert found.sum() < row_losses(weight, kind, rows, inputs).sum()


def test_the_loss_is_that_of_the_bytes_under_both_curvatures() -> None:
    weight, inputs, costs = torch.randn(6, 256), correlated(256, 2), torch.rand(6)
    refined = refine_matrix(weight, feedback_factor(inputs), GGMLType.Q3_K, inputs=inputs, row_costs=costs)
    errors = weight.double().numpy() - dequantize_rows(GGMLType.Q3_K, refined.rows, 6, 256)
    expected = 0.5 * np.trace(np.diag(costs.double().numpy()) @ errors @ inputs.double().numpy() @ errors.T)
    assert refined.loss == pytest.approx(expected, rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS), seed=st.integers(0, 99), rows=st.integers(1, 18), scale=st.sampled_from([1e-6, 1.0, 30.0]),
    shape=st.sampled_from(["random", "zeros", "constant", "outlier", "few inputs", "dead inputs", "no inputs"]),
)  # fmt: skip
def test_no_row_of_any_matrix_is_worse_than_the_encoders(
    kind: GGMLType, seed: int, rows: int, scale: float, shape: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, inputs = torch.randn(rows, 256, generator=generator), correlated(256, seed)
    if shape in {"zeros", "constant"}:
        weight = torch.full_like(weight, float(shape == "constant"))
    elif shape == "outlier":
        weight[:, seed] = 1000.0
    elif shape != "random":
        vectors = torch.randn(4, 256, generator=generator)
        inputs = vectors.T @ vectors if shape == "few inputs" else inputs
        if shape != "few inputs":
            inputs[: 256 if shape == "no inputs" else 40] = 0
            inputs[:, : 256 if shape == "no inputs" else 40] = 0
    weight = weight * scale
    factor = feedback_factor(inputs)
    refined = refine_matrix(weight, factor, kind, inputs=inputs, row_costs=torch.ones(rows), threads=1)
    plain = row_losses(weight, kind, quantize_rows(kind, weight.numpy(), inputs.diagonal().numpy()), inputs)
    assert (row_losses(weight, kind, refined.rows, inputs) <= plain).all()


def test_the_bytes_are_the_same_for_any_number_of_threads() -> None:
    weight, inputs = torch.randn(200, 256), correlated(256, 3)
    factor, costs = feedback_factor(inputs), torch.ones(200)
    one, four = (
        refine_matrix(weight, factor, GGMLType.Q4_K, inputs=inputs, row_costs=costs, threads=threads)
        for threads in (1, 4)
    )
    np.testing.assert_array_equal(one.rows, four.rows)


def test_a_type_without_a_search_comes_from_its_encoder() -> None:
    weight, inputs = torch.randn(3, 256), correlated(256, 4)
    refined = refine_matrix(weight, feedback_factor(inputs), GGMLType.F16, inputs=inputs, row_costs=torch.ones(3))
    np.testing.assert_array_equal(refined.rows, quantize_rows(GGMLType.F16, weight.numpy()))


def test_what_cannot_be_rounded_is_refused() -> None:
    weight, inputs = torch.randn(2, 288), correlated(288, 5)
    factor = feedback_factor(inputs)
    with pytest.raises(GGUFError, match="288|256"):
        refine_matrix(weight, factor, GGMLType.Q4_K, inputs=inputs, row_costs=torch.ones(2))
    weight[1, 7] = torch.nan
    with pytest.raises(NumericError, match="NaN"):
        refine_matrix(weight, factor, GGMLType.Q8_0, inputs=inputs, row_costs=torch.ones(2))


def total_loss(
    weight: torch.Tensor, kind: GGMLType, rows: np.ndarray, inputs: torch.Tensor, outputs: torch.Tensor
) -> float:
    errors = weight.double().numpy() - dequantize_rows(kind, rows, *weight.shape)
    return 0.5 * float(np.trace(outputs.double().numpy() @ errors @ inputs.double().numpy() @ errors.T))


@pytest.mark.parametrize("kind", [GGMLType.Q4_0, GGMLType.Q3_K, GGMLType.IQ4_NL])
def test_rows_that_err_together_make_good_each_others_errors(kind: GGMLType) -> None:
    weight, inputs = torch.randn(48, 256) * 0.02, correlated(256, 6)
    directions = torch.randn(48, 6, generator=torch.Generator().manual_seed(7))
    outputs = directions @ directions.T + 0.05 * torch.eye(48)
    factor = feedback_factor(inputs)
    alone = refine_matrix(weight, factor, kind, inputs=inputs, row_costs=outputs.diagonal().clone(), threads=1)
    together = refine_matrix(weight, factor, kind, inputs=inputs, row_costs=outputs, threads=1)
    assert together.loss == pytest.approx(total_loss(weight, kind, together.rows, inputs, outputs), rel=1e-2)
    assert together.loss < 0.7 * total_loss(weight, kind, alone.rows, inputs, outputs)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), rows=st.integers(1, 40), rank=st.integers(0, 4))
def test_a_full_curvature_never_loses_more_than_the_encoder(seed: int, rows: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, inputs = torch.randn(rows, 64, generator=generator), correlated(64, seed)
    directions = torch.randn(rows, rank, generator=generator)
    outputs = directions @ directions.T
    refined = refine_matrix(weight, feedback_factor(inputs), GGMLType.Q4_1, inputs=inputs, row_costs=outputs, threads=1)
    plain = quantize_rows(GGMLType.Q4_1, weight.numpy(), inputs.diagonal().numpy())
    most = total_loss(weight, GGMLType.Q4_1, plain, inputs, outputs)
    assert total_loss(weight, GGMLType.Q4_1, refined.rows, inputs, outputs) <= most * (1 + 1e-4) + 1e-9
