"""The compiled search against plain feedback with the scales that it chose, and what may never depend on how it is run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgepack.gguf.types import GGMLType
from edgepack.kernels.native import library, pointer, record
from edgepack.quant.codecs.ggml.codec import dequantize_rows, quantize_rows
from edgepack.quant.feedback import FeedbackFactor, feedback_sweep
from edgepack.quant.refine.blocks import FORMS, UNEVEN_LEVELS, Scales, read_scales, write_rows
from edgepack.quant.refine.search import Geometry, heavy_first, search_rows

ROWS, COLUMNS = 19, 512


def inputs_of(columns: int = COLUMNS, seed: int = 0) -> torch.Tensor:
    """H of correlated inputs of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(3 * columns, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    mixed = mixed * torch.exp(torch.randn(columns, generator=generator))
    return mixed.T @ mixed / len(mixed)


def weights_of(rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(4, (rows, columns)).astype(np.float32) * np.float32(0.02)


def search(
    kind: GGMLType, weight: np.ndarray, geometry: Geometry, *, threads: int = 1, sweeps: int = 2
) -> tuple[Scales, np.ndarray]:
    start = read_scales(kind, quantize_rows(kind, weight))
    return search_rows(weight, kind, start, geometry, threads, sweeps)


def dense(panels: np.ndarray) -> np.ndarray:
    """[groups, in, group] as [in, in]."""
    return panels.transpose(1, 0, 2).reshape(panels.shape[1], -1)


class FixedScales:
    """A rounder to the nearest value of scales that are known."""

    group = 1

    def __init__(self, kind: GGMLType, scales: Scales) -> None:
        form = FORMS[kind]
        self.scale = np.repeat(scales.scales, form.group, 1) * np.repeat(scales.steps, kind.block_size, 1)
        self.floor = np.repeat(scales.floors, form.group, 1) * np.repeat(scales.floor_steps, kind.block_size, 1)
        whole = np.arange(form.lowest, form.highest + 1)
        self.levels = UNEVEN_LEVELS.astype(np.float32) if form.uneven else whole.astype(np.float32)
        self.quants = np.zeros(self.scale.shape, np.float32)

    def start_group(self, start: int, weights: torch.Tensor) -> None:
        """Nothing is prepared."""

    def round(self, column: int, values: torch.Tensor) -> torch.Tensor:
        """As `ColumnRounder.round`."""
        scale, floor = self.scale[:, column], self.floor[:, column]
        wanted = (values.numpy() - floor) / np.where(scale == 0, 1, scale)
        chosen = self.levels[np.abs(wanted[:, None] - self.levels).argmin(1)]
        self.quants[:, column] = chosen
        return torch.from_numpy(scale * chosen + floor)


@pytest.mark.parametrize("kind", sorted(FORMS))
def test_integers_before_descent_are_those_of_plain_feedback_with_the_same_scales(kind: GGMLType) -> None:
    weight, geometry = weights_of(), Geometry.of(inputs_of(), 0.01, FORMS[kind].group)
    scales, quants = search(kind, weight, geometry, sweeps=0)
    rounder = FixedScales(kind, scales)
    factor = FeedbackFactor(torch.from_numpy(dense(geometry.upper)), 0.01, torch.zeros(COLUMNS, dtype=torch.bool))
    feedback_sweep(torch.from_numpy(weight), factor, rounder)
    same = (rounder.quants == quants).mean(1)  # a tie that falls the other way changes all that follows in its row
    assert np.median(same) > 0.99


@pytest.mark.parametrize("kind", sorted(FORMS))
def test_no_sweep_of_descent_makes_a_row_worse(kind: GGMLType) -> None:
    weight = weights_of()
    inputs = inputs_of()
    geometry = Geometry.of(inputs, 0.01, FORMS[kind].group, heavy_first(inputs.diagonal().numpy(), FORMS[kind].group))
    curvature, last = dense(geometry.curvature).astype(np.float64), None
    for sweeps in range(4):
        rows = write_rows(kind, *search(kind, weight, geometry, sweeps=sweeps))
        errors = (weight - dequantize_rows(kind, rows, *weight.shape)).astype(np.float64)[:, geometry.order]
        losses = ((errors @ curvature) * errors).sum(1)
        assert last is None or (losses <= last * (1 + 1e-4)).all()
        last = losses


@pytest.mark.parametrize("kind", [GGMLType.Q4_K, GGMLType.Q2_K, GGMLType.IQ4_NL, GGMLType.Q5_1])
def test_a_row_depends_neither_on_threads_nor_on_other_rows(kind: GGMLType) -> None:
    weight, geometry = weights_of(150), Geometry.of(inputs_of(), 0.01, FORMS[kind].group)
    scales, quants = search(kind, weight, geometry)
    threaded, same = search(kind, weight, geometry, threads=3)
    alone, part = search(kind, weight[77:96], geometry)
    np.testing.assert_array_equal(quants, same)
    np.testing.assert_array_equal(quants[77:96], part)
    for name in ("steps", "floor_steps", "scales", "floors"):
        np.testing.assert_array_equal(getattr(scales, name), getattr(threaded, name))
        np.testing.assert_array_equal(getattr(scales, name)[77:96], getattr(alone, name))


def test_heavy_groups_come_first_and_stay_together() -> None:
    costs = np.array([1, 2, 9, 9, 3, 4], np.float32)
    np.testing.assert_array_equal(heavy_first(costs, 2), [2, 3, 5, 4, 1, 0])


def test_curvature_is_damped_so_that_any_inputs_have_a_factor() -> None:
    inputs = inputs_of(64)
    inputs[3] = inputs[:, 3] = 0
    for some in (inputs, torch.zeros(64, 64), torch.ones(64, 64)):
        geometry = Geometry.of(some, 0.01, 32)
        assert np.isfinite(geometry.upper).all()
        product = dense(geometry.upper).T.astype(np.float64) @ dense(geometry.upper) @ dense(geometry.curvature)
        np.testing.assert_allclose(product, np.eye(64), atol=2e-2)


def test_the_kernel_refuses_groups_that_do_not_fit() -> None:
    nothing = np.zeros(1, np.float32)
    for columns, group, units in ((48, 32, 1), (32, 8, 1), (0, 32, 1), (32, 32, 0)):
        matrix = record("edgepack_refine_matrix", {"columns": columns, "group": group, "units": units}, {})
        assert library().edgepack_refine_rows(matrix, 0, 1, pointer(nothing, "float *")) == -1
