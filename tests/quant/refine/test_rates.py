"""Integers chosen for what they take in an archive: a reference on small blocks, no rate, threads, and what it gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml.codec import dequantize_rows, quantize_rows
from edgepack.quant.feedback import feedback_factor
from edgepack.quant.refine.blocks import FORMS, UNEVEN_LEVELS, read_quants, read_scales, write_rows
from edgepack.quant.refine.rates import LEAST_SCALE, LINEAR, MEAN, SQUARE, row_bits, row_rates
from edgepack.quant.refine.rounding import refine_matrix
from edgepack.quant.refine.search import Geometry, search_rows

KINDS = (GGMLType.Q5_1, GGMLType.Q5_0, GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.IQ4_XS)
COLUMNS = 256


def weights_of(rows: int = 17) -> np.ndarray:
    return np.random.default_rng(5).standard_t(5, (rows, COLUMNS)).astype(np.float32) * np.float32(0.02)


def inputs_of() -> torch.Tensor:
    made = torch.randn(2 * COLUMNS, COLUMNS, generator=torch.Generator().manual_seed(1))
    return made.T @ made / len(made)


def searched(kind: GGMLType, inputs: torch.Tensor, rate: float, **options: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, q)."""
    weight = weights_of()
    start = read_scales(kind, quantize_rows(kind, weight))
    rates = np.full(len(weight), rate, np.float32)
    geometry = Geometry.of(inputs, 0.01, FORMS[kind].group)
    scales, quants = search_rows(weight, kind, start, geometry, options.get("threads", 1), 2, rates=rates)
    return write_rows(kind, scales, quants), quants


@pytest.mark.parametrize("kind", KINDS)
def test_independent_columns_get_the_integers_that_a_reference_of_loss_and_bits_finds(kind: GGMLType) -> None:
    """Without correlation and feedback every weight is chosen alone: no neighbour of its integer costs less."""
    rate, form, weight = 2e-5, FORMS[kind], weights_of()
    rows, quants = searched(kind, torch.eye(COLUMNS), rate)
    values = UNEVEN_LEVELS.astype(np.float64) if form.uneven else np.arange(form.lowest, form.highest + 1, dtype=float)
    scales = read_scales(kind, rows)
    per = kind.block_size // form.group
    step = np.repeat(scales.scales * (np.repeat(scales.steps, per, 1)), form.group, 1).astype(float)
    floor = np.repeat(scales.floors * (np.repeat(scales.floor_steps, per, 1)), form.group, 1).astype(float)
    spread = np.maximum(np.abs(quants - form.zero).mean(1) / MEAN, LEAST_SCALE)[:, None, None]
    distance = np.abs(values - form.zero) / spread
    bits = LINEAR * distance + SQUARE * np.square(distance)
    growth = 1.01 + COLUMNS / 12288  # what H's diagonal grows by before anything else
    costs = growth * np.square(weight[..., None] - (step[..., None] * values + floor[..., None])) + rate * bits
    chosen = np.take_along_axis(costs, np.searchsorted(values, quants)[..., None], 2)[..., 0]
    # The last sweep had the spread of the one before it, and roundings of a convex cost are off where two are near.
    assert (chosen <= costs.min(2) * 1.05 + 1e-12).mean() > 0.97
    assert chosen.sum() <= costs.min(2).sum() * 1.01


@pytest.mark.parametrize("kind", KINDS)
def test_bits_fall_with_the_rate_and_blocks_hold_what_was_searched(kind: GGMLType) -> None:
    inputs, taken, losses = inputs_of(), [], []
    for rate in (1e-7, 1e-4, 1e-3):
        rows, quants = searched(kind, inputs, rate)
        assert (read_quants(kind, rows, COLUMNS) == quants).all()
        errors = weights_of() - dequantize_rows(kind, rows, *quants.shape)
        taken.append(float(row_bits(kind, quants).sum()))
        losses.append(float(((errors @ inputs.numpy()) * errors).sum()))
    assert taken[0] > taken[1] > taken[2]
    assert losses[0] < losses[1] < losses[2]


@pytest.mark.parametrize("kind", [GGMLType.Q5_1, GGMLType.Q4_K])
def test_rows_rounded_for_a_rate_depend_on_nothing_but_themselves(kind: GGMLType) -> None:
    one, three = (searched(kind, inputs_of(), 1e-4, threads=threads)[0] for threads in (1, 3))
    assert (one == three).all()


def test_no_rate_is_the_plain_search_byte_for_byte_and_one_loses_a_little_more() -> None:
    weight, inputs = torch.from_numpy(weights_of()), inputs_of()
    costs, factor = torch.ones(len(weight)), feedback_factor(inputs)
    for outputs in (costs, torch.eye(len(weight)) + 0.2):
        plain, none, some = (
            refine_matrix(weight, factor, GGMLType.Q4_K, inputs=inputs, row_costs=outputs, threads=1, **rate)
            for rate in ({}, {"rate": 0.0}, {"rate": 1e-6})
        )
        assert (plain.rows == none.rows).all()
        assert plain.loss == none.loss
        quants = [read_quants(GGMLType.Q4_K, each.rows, COLUMNS) for each in (plain, some)]
        assert row_bits(GGMLType.Q4_K, quants[1]).sum() < row_bits(GGMLType.Q4_K, quants[0]).sum()
        assert some.loss < 1.5 * plain.loss


def test_rows_that_hardly_cost_anything_are_no_free_ones() -> None:
    rates = row_rates(0.5, np.array([0.0, 1.0, 3.0], np.float32))
    assert rates[1] == 1.0
    assert np.isfinite(rates).all()
    assert rates[0] > rates[1] > rates[2]
