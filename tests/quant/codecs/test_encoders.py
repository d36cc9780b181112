"""edgepack's encoders of ggml's types against ggml's own: error, bytes and hostile rows."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml.codec import dequantize_rows, quantize_rows
from edgepack.quant.codecs.ggml.encoders import ENCODED_TYPES

if TYPE_CHECKING:
    from edgepack.model import Checkpoint

KINDS = sorted(ENCODED_TYPES)
KERNELS = Path(__file__).parents[3] / "src" / "edgepack" / "kernels"
by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def matrices(books: Checkpoint) -> list[np.ndarray]:
    """Three kinds of noise and matrices of a trained model; odd numbers of blocks."""
    layers = [name for name, spec in books.tensors.specs.items() if len(spec.shape) == 2 and ".layers." in name]
    trained = [books.tensors.read_rows(name, 0, 128) for name in layers[::8]]
    noise = []
    for seed in range(3):
        generator = np.random.default_rng(seed)
        noise += [generator.standard_normal((33, 768)), generator.standard_t(4, (64, 256)) + 0.2 * seed]
    return [*trained, *(array.astype(np.float32) for array in noise)]


def weighted_error(kind: GGMLType, rows: np.ndarray, importance: np.ndarray | None, quantizer: str) -> float:
    blocks = quantize_rows(kind, rows, importance, quantizer)
    gap = (dequantize_rows(kind, blocks, *rows.shape) - rows).astype(np.float64)
    return float((gap * gap * (1 if importance is None else importance)).sum())


@by_kind
def test_weighted_error_is_never_above_ggmls(kind: GGMLType, books: Checkpoint) -> None:
    for number, rows in enumerate(matrices(books)):
        importance = np.random.default_rng(number).lognormal(0, 1.5, rows.shape[1]).astype(np.float32)
        for weights in (None, importance):
            ours, theirs = (weighted_error(kind, rows, weights, name) for name in ("edgepack", "ggml"))
            assert ours <= theirs, f"matrix {number}, importance {weights is not None}: {ours / theirs:.4f}"


@by_kind
def test_any_chunks_and_threads_give_the_same_bytes(kind: GGMLType) -> None:
    rows = np.random.default_rng(5).standard_normal((23, 768)).astype(np.float32)
    importance = np.random.default_rng(6).random(768, dtype=np.float32)
    whole = quantize_rows(kind, rows, importance)
    with ThreadPoolExecutor(4) as pool:
        parts = pool.map(lambda start: quantize_rows(kind, rows[start : start + 3], importance), range(0, 23, 3))
        assert np.array_equal(np.concatenate(list(parts)), whole)


@pytest.fixture(scope="module")
def plain_clone(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The encoders compiled for the oldest processor only, without vectorisation."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the kernels were built, so there is a compiler"
    out = tmp_path_factory.mktemp("plain") / "plain.so"
    flags = ["-O1", "-std=c11", "-ffp-contract=off", "-fPIC", "-shared", "-DEDGEPACK_NO_CLONES"]
    subprocess.run([compiler, *flags, *map(str, KERNELS.glob("encode_*.c")), "-lm", "-o", str(out)], check=True)
    return ctypes.CDLL(str(out))


@by_kind
def test_every_instruction_set_gives_the_same_bytes(kind: GGMLType, plain_clone: ctypes.CDLL) -> None:
    rows = np.random.default_rng(7).standard_t(4, (5, 768)).astype(np.float32)
    importance = np.random.default_rng(8).lognormal(0, 1, 768).astype(np.float32)
    for weights in (None, importance):
        expected = quantize_rows(kind, rows, weights)
        out = np.empty_like(expected)
        address = None if weights is None else ctypes.c_void_p(weights.ctypes.data)
        getattr(plain_clone, f"edgepack_encode_{kind.name.lower()}")(
            ctypes.c_void_p(rows.ctypes.data), ctypes.c_int64(rows.size // kind.block_size), ctypes.c_int64(768), address,
            ctypes.c_void_p(out.ctypes.data),
        )  # fmt: skip
        assert np.array_equal(out, expected)


@by_kind
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_rows_of_zeros_stay_zeros_and_others_keep_finite(kind: GGMLType, share: float) -> None:
    rows = np.zeros((4, 256), dtype=np.float32)
    rows[1], rows[2, 3], rows[3] = 1e-9, -3, np.linspace(-1, 1, 256)
    importance = np.full(256, share, dtype=np.float32)
    back = dequantize_rows(kind, quantize_rows(kind, rows, importance), 4, 256)
    assert not back[0].any()
    assert np.isfinite(back).all()
    assert np.abs(back - rows).max() < 1.2


@by_kind
def test_rows_that_no_block_can_hold_are_encoded_without_harm(kind: GGMLType) -> None:
    rows = np.random.default_rng(9).standard_normal((4, 256)).astype(np.float32)
    rows[0], rows[1, 7], rows[2, 9], rows[3, 0] = 3e38, np.nan, -np.inf, 1e30
    with np.errstate(over="ignore", invalid="ignore"):
        assert quantize_rows(kind, rows).shape == (4, kind.row_bytes(256))
        assert quantize_rows(kind, rows, np.full(256, np.inf, dtype=np.float32)).shape == (4, kind.row_bytes(256))


def test_weights_that_eight_bits_hold_exactly_are_kept() -> None:
    quants = np.random.default_rng(10).integers(-127, 128, (8, 256))
    quants[:, ::32] = 127
    rows = (quants * np.float32(0.0123).astype(np.float16)).astype(np.float32)
    assert np.array_equal(dequantize_rows(GGMLType.Q8_0, quantize_rows(GGMLType.Q8_0, rows), 8, 256), rows)
