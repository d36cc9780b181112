"""A GGUF whose metadata lies is refused in one line; llama.cpp never crashes, hangs or eats the memory on it."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import Shape, metadata, tensors

from edgepack.cli import execute as run
from edgepack.edge.fit.shape import read_shape
from edgepack.edge.llama.check import check_runnable, read_runnable
from edgepack.errors import EdgepackError
from edgepack.gguf.reader import parse_header
from edgepack.gguf.types import Value, ValueType, array, boolean, f32, string, u32
from edgepack.gguf.writer import encode_header, place_tensors

if TYPE_CHECKING:
    from pathlib import Path

U64, I32, I64, F64 = ValueType.UINT64, ValueType.INT32, ValueType.INT64, ValueType.FLOAT64
CASES: dict[str, dict[str, Value | None]] = {
    "2^60 layers": {"llama.block_count": Value(U64, 2**60)},
    "more layers than tensors": {"llama.block_count": u32(500)},
    "negative layers": {"llama.block_count": Value(I32, -1)},
    "layers as text": {"llama.block_count": string("two")},
    "no layers": {"llama.block_count": u32(0)},
    "layers missing": {"llama.block_count": None},
    "a width of zero": {"llama.embedding_length": u32(0)},
    "a huge width": {"llama.embedding_length": u32(2**31)},
    "a negative width": {"llama.embedding_length": Value(I64, -64)},
    "another width": {"llama.embedding_length": u32(96)},
    "no heads": {"llama.attention.head_count": u32(0)},
    "2^31 heads": {"llama.attention.head_count": u32(2**31)},
    "heads that do not divide": {"llama.attention.head_count_kv": u32(3)},
    "no KV heads": {"llama.attention.head_count_kv": u32(0)},
    "too few heads in a list": {"llama.attention.head_count": array(ValueType.UINT32, [4])},
    "a context of zero": {"llama.context_length": u32(0)},
    "a context of 2^63": {"llama.context_length": Value(U64, 2**63)},
    "a head of zero": {"llama.attention.key_length": u32(0)},
    "a rotation wider than the head": {"llama.rope.dimension_count": u32(60000)},
    "an epsilon that is no number": {"llama.attention.layer_norm_rms_epsilon": f32(float("nan"))},
    "a rotation base that is infinite": {"llama.rope.freq_base": f32(float("inf"))},
    "more experts used than there are": {"llama.expert_count": u32(2), "llama.expert_used_count": u32(9)},
    "experts without use": {"llama.expert_count": u32(4)},
    "more groups than experts": {
        "llama.expert_count": u32(4),
        "llama.expert_used_count": u32(2),
        "llama.expert_group_count": u32(9),
    },
    "an unknown rope scaling": {"llama.rope.scaling.type": string("nosuch")},
    "more predicted layers than layers": {"llama.nextn_predict_layers": u32(200)},
    "an architecture with a slash": {"general.architecture": string("../llama")},
    "an unknown architecture": {"general.architecture": string("nosuch")},
    "no architecture": {"general.architecture": None},
    "an architecture as a number": {"general.architecture": u32(1)},
    "an adapter": {"general.type": string("adapter")},
    "a BOS outside the vocabulary": {"tokenizer.ggml.bos_token_id": u32(10**9)},
    "a negative EOS": {"tokenizer.ggml.eos_token_id": Value(I32, -5)},
    "tokens as numbers": {"tokenizer.ggml.tokens": array(ValueType.UINT32, [1, 2])},
    "no tokens": {"tokenizer.ggml.tokens": array(ValueType.STRING, [])},
    "too few token types": {"tokenizer.ggml.token_type": array(ValueType.INT32, [1])},
    "too many scores": {"tokenizer.ggml.scores": array(ValueType.FLOAT32, [0.0] * 5000)},
    "an unknown tokenizer": {"tokenizer.ggml.model": string("nosuch")},
    "a template of a megabyte": {"tokenizer.chat_template": string("x" * 2**20)},
    "a template that is a number": {"tokenizer.chat_template": u32(1)},
    "an alignment of zero": {"general.alignment": u32(0)},
    "an alignment that is no power of two": {"general.alignment": u32(48)},
    "a sliding window that is a list": {"llama.attention.sliding_window": array(ValueType.UINT32, [1, 2])},
    "a truth value for the width": {"llama.embedding_length": boolean(True)},
    "a fraction for the layers": {"llama.block_count": Value(F64, 2.5)},
}


def model_bytes(changes: dict[str, Value | None]) -> bytes:
    """A tiny model with changed metadata; the tensors' bytes are zero."""
    keys = {key: value for key, value in {**metadata(Shape()), **changes}.items() if value is not None}
    placed = place_tensors(tensors(Shape()))
    end = placed[-1].offset + placed[-1].nbytes
    return encode_header(keys, placed, 32) + bytes(end)


def refused_by_edgepack(path: Path) -> bool:
    try:
        read_runnable(path)
    except EdgepackError:
        return True
    return False


@pytest.mark.parametrize("name", CASES)
def test_hostile_metadata_is_refused_in_one_line(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(model_bytes(CASES[name]))
    arguments = ["run", str(path), "--prompt", "x", "--max-tokens", "2", "--threads", "1"]
    if refused_by_edgepack(path):
        code, error = run(arguments), capfd.readouterr().err
    else:  # llama.cpp is to refuse it: should it crash instead, not with this process
        result = subprocess.run(
            [sys.executable, "-m", "edgepack", *arguments], capture_output=True, text=True, timeout=60
        )
        code, error = result.returncode, result.stderr
    assert code in (4, 6, 10), (code, error[-2000:])
    assert error.startswith("edgepack: error: ")
    assert error.count("\n") == 1


def test_the_unchanged_model_runs(tmp_path: Path) -> None:
    path = tmp_path / "sound.gguf"
    path.write_bytes(model_bytes({}))
    result = subprocess.run(
        [sys.executable, "-m", "edgepack", "run", str(path), "--prompt", "x", "--max-tokens", "2", "--threads", "1"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


def test_counts_in_the_container_are_checked_before_use(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for n_tensors, n_keys in ((2**60, 1), (0, 2**63)):
        path = tmp_path / "counts.gguf"
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys) + bytes(100))
        assert run(["run", str(path), "--prompt", "x"]) == 6
        assert capfd.readouterr().err.count("\n") == 1


SCALARS = st.one_of(
    st.integers(0, 2**32 - 1).map(u32),
    st.integers(-(2**31), 2**31 - 1).map(lambda number: Value(I32, number)),
    st.integers(0, 2**64 - 1).map(lambda number: Value(U64, number)),
    st.floats(width=32).map(f32),
    st.booleans().map(boolean),
    st.text(max_size=20).map(string),
    st.lists(st.integers(0, 2**32 - 1), max_size=4).map(lambda items: array(ValueType.UINT32, items)),
)


@given(st.dictionaries(st.sampled_from([key for key in metadata(Shape()) if key != "general.name"]), SCALARS))
@settings(max_examples=200, deadline=None)
def test_whatever_the_metadata_says_checking_it_ends_in_a_verdict(changes: dict[str, Any]) -> None:
    from pathlib import Path

    raw = model_bytes(changes)
    with contextlib.suppress(EdgepackError):  # any other exception is a failure
        header = parse_header(raw, Path("hostile.gguf"))
        check_runnable(header)
        assert read_shape(header).nbytes <= len(raw)
