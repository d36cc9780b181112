"""Scales of ggml's blocks against ggml's own dequantiser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgepack.quant.codecs.ggml.codec import dequantize_rows, quantize_rows
from edgepack.quant.refine.blocks import FORMS, UNEVEN_LEVELS, Scales, read_scales, write_rows

if TYPE_CHECKING:
    from edgepack.gguf.types import GGMLType

ROWS, COLUMNS = 3, 512


def random_scales(kind: GGMLType, rng: np.random.Generator) -> tuple[Scales, np.ndarray]:
    """Any scales and integers that the type can hold."""
    form, groups, blocks = FORMS[kind], COLUMNS // FORMS[kind].group, COLUMNS // kind.block_size

    def halves(count: int) -> np.ndarray:
        return rng.standard_normal((ROWS, count)).astype(np.float16).astype(np.float32)

    coded = form.scales != (0, 0)
    steps = halves(blocks) if coded else np.ones((ROWS, blocks), np.float32)
    floor_steps = np.ones((ROWS, blocks), np.float32)
    scales, floors = halves(groups), np.zeros((ROWS, groups), np.float32)
    if coded:
        scales = rng.integers(form.scales[0], form.scales[1] + 1, (ROWS, groups)).astype(np.float32)
    if form.floors:
        floor_steps = -np.abs(halves(blocks))
        floors = rng.integers(0, form.floors + 1, (ROWS, groups)).astype(np.float32)
    elif form.floors is not None:
        floors = halves(groups)
    if form.uneven:
        return Scales(steps, floor_steps, scales, floors), rng.choice(UNEVEN_LEVELS, (ROWS, COLUMNS))
    quants = rng.integers(form.lowest, form.highest + 1, (ROWS, COLUMNS)).astype(np.int8)
    return Scales(steps, floor_steps, scales, floors), quants


def values_of(kind: GGMLType, scales: Scales, quants: np.ndarray) -> np.ndarray:
    per_group, per_block = FORMS[kind].group, kind.block_size
    scale = np.repeat(scales.scales, per_group, 1) * np.repeat(scales.steps, per_block, 1)
    floor = np.repeat(scales.floors, per_group, 1) * np.repeat(scales.floor_steps, per_block, 1)
    return scale * quants + floor


@pytest.mark.parametrize("kind", sorted(FORMS))
def test_what_is_written_is_what_ggml_reads(kind: GGMLType) -> None:
    scales, quants = random_scales(kind, np.random.default_rng(0))
    rows = write_rows(kind, scales, quants)
    found = dequantize_rows(kind, rows, ROWS, COLUMNS)
    np.testing.assert_allclose(found, values_of(kind, scales, quants), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(FORMS))
def test_scales_read_are_those_written(kind: GGMLType) -> None:
    scales, quants = random_scales(kind, np.random.default_rng(1))
    found = read_scales(kind, write_rows(kind, scales, quants))
    for name in ("steps", "floor_steps", "scales", "floors"):
        np.testing.assert_array_equal(getattr(found, name), getattr(scales, name), err_msg=name)


@pytest.mark.parametrize("kind", sorted(FORMS))
def test_scales_of_an_encoders_bytes_hold_its_weights(kind: GGMLType) -> None:
    weight = np.random.default_rng(2).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    rows = quantize_rows(kind, weight)
    scales, expected = read_scales(kind, rows), dequantize_rows(kind, rows, ROWS, COLUMNS)
    form = FORMS[kind]
    scale = np.repeat(scales.scales, form.group, 1) * np.repeat(scales.steps, kind.block_size, 1)
    floor = np.repeat(scales.floors, form.group, 1) * np.repeat(scales.floor_steps, kind.block_size, 1)
    quants = np.rint((expected - floor) / scale).astype(np.int8)
    np.testing.assert_array_equal(dequantize_rows(kind, write_rows(kind, scales, quants), ROWS, COLUMNS), expected)
