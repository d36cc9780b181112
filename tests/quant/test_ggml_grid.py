"""The grid of a ggml block against ggml's own dequantiser."""

from __future__ import annotations

import numpy as np
import pytest
from references.ggml_integers import read_quants

from edgepack.errors import CodecError
from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml.codec import dequantize_rows, quantize_rows
from edgepack.quant.codecs.ggml.grid import GRID_TYPES, read_grid, write_quants

KINDS = sorted(GRID_TYPES)
COLUMNS = 512


def random_rows(kind: GGMLType, seed: int = 0) -> np.ndarray:
    return quantize_rows(kind, np.random.default_rng(seed).standard_normal((7, COLUMNS)).astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_grid_and_integers_give_ggmls_own_values(kind: GGMLType) -> None:
    rows = random_rows(kind)
    expected = dequantize_rows(kind, rows, len(rows), COLUMNS)
    found = read_grid(kind, rows).values(read_quants(kind, rows))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_any_integers_in_range_are_what_ggml_reads_back(kind: GGMLType) -> None:
    rows = random_rows(kind)
    grid = read_grid(kind, rows)
    quants = np.random.default_rng(1).integers(grid.lowest, grid.highest + 1, (7, COLUMNS)).astype(np.int8)
    written = write_quants(kind, rows, quants)
    np.testing.assert_array_equal(read_quants(kind, written), quants)
    np.testing.assert_allclose(
        dequantize_rows(kind, written, len(rows), COLUMNS), grid.values(quants), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_writing_what_was_read_changes_no_byte(kind: GGMLType) -> None:
    rows = np.random.default_rng(2).integers(0, 256, random_rows(kind).shape).astype(np.uint8)
    np.testing.assert_array_equal(write_quants(kind, rows, read_quants(kind, rows)), rows)


def test_an_integer_out_of_range_is_refused() -> None:
    rows = random_rows(GGMLType.Q4_K)
    with pytest.raises(CodecError, match="from 0 to 15, got 0 to 16"):
        write_quants(GGMLType.Q4_K, rows, np.pad(np.zeros((6, COLUMNS), np.int8), ((0, 1), (0, 0)), constant_values=16))


def test_a_type_without_a_grid_is_refused() -> None:
    with pytest.raises(CodecError, match="IQ4_XS"):
        read_grid(GGMLType.IQ4_XS, np.zeros((1, 136), np.uint8))
