"""What caches take is what llama.cpp says that it allocates, and names of caches are read strictly."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tiny_models import Shape, write_random

from edgepack.edge.fit.shape import read_shape
from edgepack.edge.kv.sizes import USUAL, cache_bytes, check_attention, refusal, rotated, row_bytes
from edgepack.edge.llama.options import KV_TYPES, RuntimeOptions, kv_name, kv_types
from edgepack.edge.llama.runtime import LoadedModel
from edgepack.errors import UnsupportedModelError, UsageError
from edgepack.gguf.reader import read_header

if TYPE_CHECKING:
    from pathlib import Path

WIDE = Shape(head_width=64, heads=2, kv_heads=1, width=64, context=4096)
WINDOWED = Shape("gemma2", layers=4, head_width=64, heads=2, kv_heads=1, window=256, context=4096)
_SIZE = re.compile(r"KV buffer size = +([\d.]+) MiB")
_TURNED = {side: re.compile(rf"attn_rot_{side} = (\d)") for side in "kv"}
MIB = 2**20


@pytest.mark.parametrize("name", [*USUAL, "f32", "bf16", "f16/q8_0"])
@pytest.mark.parametrize("made", [WIDE, WINDOWED], ids=["llama", "gemma2"])
def test_bytes_and_rotation_are_those_that_llama_cpp_reports(name: str, made: Shape, tmp_path: Path) -> None:
    path = write_random(tmp_path / "m.gguf", made)
    shape = read_shape(read_header(path))
    k, v = kv_types(name)
    options = RuntimeOptions(
        n_ctx=4096, n_batch=512, threads=1, kv_type_k=k, kv_type_v=v, flash_attention="on", max_outputs=1
    )
    with LoadedModel(path, options) as model:
        log = model.load_log
    reported = sum(float(size) for size in _SIZE.findall(log))
    assert abs(cache_bytes(shape, name, 4096) / MIB - reported) < 0.006 * len(_SIZE.findall(log))
    assert rotated(shape, name) == tuple(_TURNED[side].search(log)[1] == "1" for side in "kv")  # type: ignore[index]
    assert refusal(shape, name) == ""


def test_without_windows_a_context_takes_its_tokens_and_nothing_else(tmp_path: Path) -> None:
    shape = read_shape(read_header(write_random(tmp_path / "m.gguf", WIDE)))
    for name in USUAL:
        assert cache_bytes(shape, name, 2048) == 2048 * row_bytes(shape, name)


def test_a_window_keeps_a_cache_from_growing(tmp_path: Path) -> None:
    shape = read_shape(read_header(write_random(tmp_path / "m.gguf", WINDOWED)))
    grown = cache_bytes(shape, "f16", 4096) - cache_bytes(shape, "f16", 2048)
    assert grown == 2048 * row_bytes(shape, "f16") // 2  # every other layer looks at all of it


def test_blocks_that_do_not_divide_a_head_are_refused_by_name_as_llama_cpp_does(tmp_path: Path) -> None:
    path = write_random(tmp_path / "m.gguf", Shape(head_width=16))
    shape = read_shape(read_header(path))
    assert refusal(shape, "f16/q4_0") == "blocks of 32 do not divide heads of 16 (V as q4_0)"
    assert refusal(shape, "bf16") == ""


def test_a_name_is_a_type_or_two() -> None:
    assert kv_types("q8_0") == ("q8_0", "q8_0")
    assert kv_types("q8_0/q4_0") == ("q8_0", "q4_0")
    assert {kv_name(*kv_types(name)) for name in KV_TYPES} == set(KV_TYPES)
    assert kv_name("q4_0", "q8_0") == "q4_0/q8_0"
    for bad in ("q3_k", "q8_0/", "q8_0/q4_0/f16", "/q8_0", "", "Q8_0"):
        with pytest.raises(UsageError, match="KV cache type"):
            kv_types(bad)


@pytest.mark.parametrize("architecture", ["mamba", "rwkv7"])
def test_a_model_without_attention_is_refused_with_what_it_keeps(architecture: str, tmp_path: Path) -> None:
    shape = read_shape(read_header(write_random(tmp_path / "m.gguf", WIDE)))
    layers = tuple(replace(layer, k=0, v=0, state=1000) for layer in shape.layers)
    stateful = replace(shape, architecture=architecture, layers=layers)
    with pytest.raises(UnsupportedModelError, match=rf"x: {architecture} has no keys .* state of 2,000 bytes"):
        check_attention(stateful, "x")
    check_attention(shape, "x")
