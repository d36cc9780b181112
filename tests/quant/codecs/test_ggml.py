"""ggml through ctypes against gguf-py's independent numpy implementation."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from edgepack.errors import CodecError, GGUFError
from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml.codec import dequantize_rows, needs_importance, quantize_rows, valid_rows, widen
from edgepack.quant.codecs.ggml.library import type_traits

# Types that gguf-py implements in numpy, both ways.
BOTH_WAYS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0"]
TO_FLOAT = [*BOTH_WAYS, "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ2_S", "MXFP4"]


def weights(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(rows * columns).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("kind", list(GGMLType))
def test_block_sizes_equal_the_librarys(kind: GGMLType) -> None:
    traits = type_traits(kind)
    assert (kind.block_size, kind.block_bytes) == (traits.block_size, traits.block_bytes)
    assert traits.type_name.decode().lower() == kind.name.lower()


@pytest.mark.parametrize("name", BOTH_WAYS)
@pytest.mark.parametrize("rows", [1, 3])
def test_quantised_bytes_equal_gguf_pys(name: str, rows: int) -> None:
    array = weights(rows, 512)
    expected = gguf.quants.quantize(array, gguf.GGMLQuantizationType[name]).view(np.uint8).reshape(rows, -1)
    assert np.array_equal(quantize_rows(GGMLType[name], array, quantizer="ggml"), expected)


@pytest.mark.parametrize("name", TO_FLOAT)
def test_dequantised_weights_equal_gguf_pys(name: str) -> None:
    kind = GGMLType[name]
    importance = np.ones(512, dtype=np.float32) if needs_importance(kind) else None
    blocks = quantize_rows(kind, weights(2, 512), importance)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name]).reshape(2, 512)
    assert np.array_equal(dequantize_rows(kind, blocks, 2, 512), expected)
    assert valid_rows(kind, blocks)


def test_rows_quantise_alike_in_any_chunks() -> None:
    array = weights(7, 256)
    parts = [quantize_rows(GGMLType.Q5_K, array[i : i + 3]) for i in range(0, 7, 3)]
    assert np.array_equal(np.concatenate(parts), quantize_rows(GGMLType.Q5_K, array))


def test_importance_changes_the_choice() -> None:
    array, importance = weights(4, 256), np.linspace(0.01, 9, 256, dtype=np.float32)
    plain = dequantize_rows(GGMLType.Q4_K, quantize_rows(GGMLType.Q4_K, array), 4, 256)
    weighted = dequantize_rows(GGMLType.Q4_K, quantize_rows(GGMLType.Q4_K, array, importance), 4, 256)
    assert (importance * (array - weighted) ** 2).sum() < (importance * (array - plain) ** 2).sum()


@pytest.mark.parametrize("kind", [GGMLType.BF16, GGMLType.F16])
def test_widening_inverts_narrowing(kind: GGMLType) -> None:
    narrow = quantize_rows(kind, weights(2, 64))
    out = np.empty(128, dtype=np.float32)
    widen(kind, narrow, out)
    assert np.array_equal(quantize_rows(kind, out.reshape(2, 64)), narrow)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(GGUFError, match="multiple of 256, got 100"):
        quantize_rows(GGMLType.Q4_K, weights(1, 100))
    with pytest.raises(CodecError, match=r"expected shape \(256,\), got \(255,\)"):
        quantize_rows(GGMLType.Q4_K, weights(1, 256), np.ones(255, dtype=np.float32))
    with pytest.raises(CodecError, match="needs an importance matrix"):
        quantize_rows(GGMLType.IQ2_XXS, weights(1, 256))
    with pytest.raises(CodecError, match="expected 144 bytes, got 143"):
        dequantize_rows(GGMLType.Q4_K, bytes(143), 1, 256)
