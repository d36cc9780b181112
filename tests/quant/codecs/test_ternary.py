"""Ternary weights survive their packing, and llama.cpp's own ternary types, exactly."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack.errors import CodecError
from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.decode import decode
from edgepack.quant.codecs.ggml.codec import dequantize_rows, quantize_rows
from edgepack.quant.codecs.ternary import Ternary, pack_trits, unpack_trits


def ternary_matrix(rows: int, columns: int, scale: float) -> np.ndarray:
    trits = np.random.default_rng(5).integers(-1, 2, (rows, columns))
    return (trits * np.float16(scale)).astype(np.float32)


def test_hand_computed_trits() -> None:
    # (-1, 0, 1, 0, 0) + 1 = (0, 1, 2, 1, 1): 0·1 + 1·3 + 2·9 + 1·27 + 1·81 = 129; a lone 1 pads to (2, 1, 1, 1, 1).
    assert pack_trits(np.array([-1, 0, 1, 0, 0, 1], np.int8)).tolist() == [129, 2 + 3 + 9 + 27 + 81]
    assert unpack_trits(np.array([129], np.uint8)).tolist() == [-1, 0, 1, 0, 0]


def test_all_243_bytes_are_used_and_no_other_is_accepted() -> None:
    every = np.arange(243, dtype=np.uint8)
    assert np.array_equal(pack_trits(unpack_trits(every).astype(np.int8)), every)
    with pytest.raises(CodecError, match="expected bytes up to 242, got 243"):
        unpack_trits(np.array([243], np.uint8))


@pytest.mark.parametrize("scale", ["tensor", "row", "block"])
@pytest.mark.parametrize("fit", ["absmean", "least-squares"])
def test_weights_that_are_already_ternary_are_kept_exactly(scale: str, fit: str) -> None:
    weight = ternary_matrix(6, 512, 0.0371)
    assert np.array_equal(decode(Ternary(scale, fit).encode(weight)), weight)


@pytest.mark.parametrize("kind", [GGMLType.TQ1_0, GGMLType.TQ2_0])
@pytest.mark.parametrize("scale", ["tensor", "row", "block"])
def test_decoded_weights_survive_llama_cpps_absmax_exactly(kind: GGMLType, scale: str) -> None:
    weight = np.random.default_rng(1).standard_normal((8, 768), dtype=np.float32) * np.float32(0.02)
    decoded = decode(Ternary(scale).encode(weight))
    native = quantize_rows(kind, decoded)
    assert np.array_equal(dequantize_rows(kind, native, 8, 768), decoded)


def test_absmean_rounds_as_bitnet_says() -> None:
    weight = np.random.default_rng(2).standard_normal((4, 100), dtype=np.float32)
    scale = np.float32(np.float16(np.abs(weight).mean()))
    expected = np.clip(np.rint(weight / scale), -1, 1) * scale
    assert np.array_equal(decode(Ternary("tensor").encode(weight)), expected)


def test_least_squares_is_never_worse_than_absmean() -> None:
    weight = np.random.default_rng(3).standard_t(3, (16, 512)).astype(np.float32)
    errors = [
        ((decode(Ternary("block", fit).encode(weight)) - weight) ** 2).sum() for fit in ("least-squares", "absmean")
    ]
    assert errors[0] < errors[1]
