"""Whichever engine's ggml quantises, the bytes are the same: digests do not depend on what else is installed."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgepack.errors import DependencyError
from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml import codec
from edgepack.quant.codecs.ggml import library as ggml_library

if TYPE_CHECKING:
    import ctypes
    from pathlib import Path

    from numpy.typing import NDArray

COLUMNS = 512
SLOW_TABLES = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")  # seconds each; equal too (docs/lab-notes.md)
QUANTISED = [
    kind
    for kind in GGMLType
    if kind.name not in ("F32", "F16", "BF16", "F64", "Q8_1", "Q8_K") and not kind.name.startswith("I1")
    and not kind.name.startswith(("I8", "I32", "I64")) and kind.name not in SLOW_TABLES
]  # fmt: skip


@cache
def both() -> list[ctypes.CDLL]:
    found = ggml_library.ggml_libraries()
    if len(found) < 2:
        pytest.skip("needs both engines")
    assert [library.package for library in found] == ["llama-cpp-python", "xllamacpp"]
    return [ggml_library.bind(library) for library in found]


def rows() -> NDArray[np.float32]:
    rng = np.random.default_rng(5)
    spread = rng.gamma(1.0, 1.0, (3, COLUMNS))
    return np.ascontiguousarray(rng.standard_normal((3, COLUMNS)) * spread, dtype=np.float32)


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_both_libraries_quantise_to_the_same_bytes(kind: GGMLType) -> None:
    weights = rows()
    importance = np.random.default_rng(6).gamma(1.0, 1.0, COLUMNS).astype(np.float32)
    for given in (None, importance.ctypes.data):
        blocks = []
        for library in both():
            if given is None and library.ggml_quantize_requires_imatrix(kind):
                continue
            out = np.zeros((len(weights), kind.row_bytes(COLUMNS)), np.uint8)
            library.ggml_quantize_chunk(
                kind, weights.ctypes.data, out.ctypes.data, 0, len(weights), COLUMNS, given
            )  # fmt: skip
            blocks.append(out)
        assert not blocks or np.array_equal(*blocks)


@pytest.mark.parametrize("name", ["ggml_fp32_to_bf16_row", "ggml_fp32_to_fp16_row"])
def test_both_libraries_narrow_alike(name: str) -> None:
    weights = rows()
    narrow = [np.zeros(weights.shape, np.uint16) for _ in both()]
    for library, out in zip(both(), narrow, strict=True):
        getattr(library, name)(weights.ctypes.data, out.ctypes.data, weights.size)
    assert np.array_equal(*narrow)


def test_without_llama_cpp_python_the_other_library_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    find = ggml_library.importlib.util.find_spec
    monkeypatch.setattr(
        ggml_library.importlib.util, "find_spec", lambda name: None if name == "llama_cpp" else find(name)
    )
    assert [library.package for library in ggml_library.ggml_libraries()] == ["xllamacpp"]


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows with xllamacpp alone."""
    monkeypatch.setattr(codec, "has_ggml", lambda: False)
    monkeypatch.setattr(codec, "ggml", lambda: pytest.fail("ggml is called"))


@pytest.mark.parametrize(
    "kind", [GGMLType.F16, GGMLType.BF16, GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.IQ4_XS]
)
def test_without_a_library_bytes_floats_and_checks_are_the_same(kind: GGMLType, request: pytest.FixtureRequest) -> None:
    weights = rows()
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-8, 6.1e-5, 65520.0, 3e38, 1.0000001], np.float32)
    if kind in (GGMLType.F16, GGMLType.BF16):
        weights[0, : len(special)] = special

    def all_of() -> tuple[NDArray[np.uint8], NDArray[np.float32], bool, bool]:
        blocks = codec.quantize_rows(kind, weights)
        floats = codec.dequantize_rows(kind, blocks, len(weights), COLUMNS)
        return blocks, floats, codec.valid_rows(kind, blocks), codec.needs_importance(kind)

    with_library = all_of()
    request.getfixturevalue("no_library")
    without = all_of()
    np.testing.assert_array_equal(with_library[0], without[0])
    np.testing.assert_array_equal(with_library[1], without[1])
    assert with_library[2:] == without[2:]


def test_broken_scales_are_seen_without_a_library(no_library: None) -> None:
    blocks = codec.quantize_rows(GGMLType.Q8_0, rows())
    assert codec.valid_rows(GGMLType.Q8_0, blocks)
    blocks[1, :2] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)
    assert not codec.valid_rows(GGMLType.Q8_0, blocks)


def test_without_any_engine_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ggml_library, "ggml_libraries", list)
    ggml_library.ggml.cache_clear()
    try:
        with pytest.raises(DependencyError, match="pip install xllamacpp"):
            ggml_library.ggml()
    finally:
        ggml_library.ggml.cache_clear()


def test_a_library_without_the_functions_is_named(tmp_path: Path) -> None:
    broken = ggml_library.GgmlLibrary("xllamacpp", tmp_path / "absent.so")
    with pytest.raises(DependencyError, match="absent"):
        ggml_library.bind(broken)


def test_the_device_runs_without_llama_cpp_python_and_torch(tiny_gguf: Path) -> None:
    """Every module of the device imports, and a model answers, where llama_cpp, torch and transformers are absent."""
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('llama_cpp', 'torch', 'transformers', 'safetensors'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name in ('llama_cpp', 'torch') else find(name, package)\n"
        "import edgepack\n"
        "with edgepack.load(sys.argv[1], threads=1) as model:\n"
        "    print(model.complete('a', max_tokens=3, temperature=0).tokens)\n"
        "    print(len(model.embed('a')[0]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny_gguf)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 1 <= int(done.stdout.split()[0]) <= 3


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    from tiny_models import Shape, write_random

    return write_random(tmp_path / "tiny.gguf", Shape())
