"""A GGUF as the source: the same bytes as llama.cpp's quantiser makes of it, blocks of the same type untouched."""

from __future__ import annotations

import json
from io import BytesIO

import numpy as np
import pytest
from references.llama_quantize import llama_quantize, tensors_of

from edgepack.cli import execute as run
from edgepack.errors import EdgepackError, GGUFError, UnsupportedModelError, UsageError
from edgepack.export.gguf_file import write_gguf
from edgepack.export.gguf_source import map_gguf
from edgepack.export.mapped_model import open_model
from edgepack.export.plan import PlanOptions, plan_export
from edgepack.gguf.reader import read_header
from edgepack.gguf.types import GGMLType, TensorInfo, ValueType, array, string, u32
from edgepack.gguf.writer import GGUFWriter
from edgepack.quant.types.targets import find_target


def export(source, target, path, quantizer="edgepack", **options):
    chosen = find_target(target)
    write_gguf(plan_export(open_model(source, **options), chosen, PlanOptions(quantizer=quantizer)), path, threads=2)
    return chosen


@pytest.fixture(scope="module")
def half(books, tmp_path_factory):
    path = tmp_path_factory.mktemp("half") / "books-f16.gguf"
    export(books, "gguf-f16", path)
    return path


@pytest.mark.parametrize("target", ["gguf-q5km", "gguf-q8"])
def test_a_gguf_is_quantised_as_llama_cpp_does_it(half, tmp_path, target):
    chosen = export(half, target, tmp_path / "ours.gguf", quantizer="ggml")
    assert llama_quantize(half, tmp_path / "theirs.gguf", chosen.file_type)
    assert tensors_of(tmp_path / "ours.gguf") == tensors_of(tmp_path / "theirs.gguf")


def test_metadata_survives_but_for_the_file_type(half, tmp_path):
    export(half, "gguf-q8", tmp_path / "ours.gguf")
    before, after = (read_header(path).metadata for path in (half, tmp_path / "ours.gguf"))
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert changed == {"general.file_type"}


def test_an_export_to_the_same_type_copies_every_block(half, tmp_path):
    export(half, "gguf-q4km", tmp_path / "first.gguf")
    export(tmp_path / "first.gguf", "gguf-q4km", tmp_path / "second.gguf", allow_requantize=True)
    assert tensors_of(tmp_path / "first.gguf") == tensors_of(tmp_path / "second.gguf")


def test_quantised_tensors_need_the_users_word(half, tmp_path):
    export(half, "gguf-q8", tmp_path / "q8.gguf")
    with pytest.raises(UsageError, match=r"Q8_0 already.*--allow-requantize"):
        open_model(tmp_path / "q8.gguf")
    export(tmp_path / "q8.gguf", "gguf-q4_0", tmp_path / "q4.gguf", allow_requantize=True)
    assert read_header(tmp_path / "q4.gguf").tensor("blk.0.attn_q.weight").type is GGMLType.Q4_0


def test_shards_are_read_as_one_model(half, tmp_path):
    command = ["export", str(half), "--target", "gguf-f16", "--shard-size", "4MB", "-o", str(tmp_path / "m.gguf")]
    assert run(command) == 0
    first, *others = sorted(tmp_path.glob("m-*.gguf"))
    assert others
    whole, shards = map_gguf(half), map_gguf(first)
    assert list(whole.tensors) == list(shards.tensors) or set(whole.tensors) == set(shards.tensors)
    assert not any(key.startswith("split.") for key in shards.metadata)
    for name in ("token_embd.weight", "blk.5.ffn_down.weight"):
        np.testing.assert_array_equal(whole.tensors[name].read(0, 5), shards.tensors[name].read(0, 5))
    others[0].unlink()
    with pytest.raises(GGUFError):
        map_gguf(first)


def small(path, metadata, kind=GGMLType.F32):
    stream = BytesIO()
    info = TensorInfo("a.weight", (2, 32), kind)
    writer = GGUFWriter(stream, metadata, [info])
    writer.write_header()
    writer.write("a.weight", bytes(info.nbytes))
    path.write_bytes(stream.getvalue())
    return path


GOOD = {"general.architecture": string("llama"), "llama.block_count": u32(1)}


@pytest.mark.parametrize(
    ("metadata", "kind", "needle"),
    [
        ({}, GGMLType.F32, "general.architecture"),
        ({"general.architecture": u32(1)}, GGMLType.F32, "general.architecture"),
        ({"general.architecture": string("llama")}, GGMLType.F32, "block_count"),
        ({**GOOD, "llama.block_count": string("1")}, GGMLType.F32, "block_count"),
        ({**GOOD, "llama.attention.head_count": array(ValueType.INT32, [-1])}, GGMLType.F32, "head_count"),
        ({**GOOD, "general.type": string("adapter")}, GGMLType.F32, "adapter"),
        ({**GOOD, "split.count": u32(3)}, GGMLType.F32, "first of 3 files"),
        (GOOD, GGMLType.I32, "expected weights, got I32"),
    ],
)
def test_a_gguf_that_is_no_model_is_one_line(tmp_path, metadata, kind, needle):
    with pytest.raises((GGUFError, UnsupportedModelError), match=needle) as error:
        map_gguf(small(tmp_path / "small.gguf", metadata, kind))
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_gguf_is_one_line(tmp_path):
    (tmp_path / "x.gguf").write_bytes(json.dumps({"a": 1}).encode())
    with pytest.raises(EdgepackError, match="magic"):
        open_model(tmp_path / "x.gguf")
