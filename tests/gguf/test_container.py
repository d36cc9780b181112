"""The GGUF container: written files are gguf-py's equals, and nothing hostile gets past the reader."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import GGUFError
from edgepack.gguf.reader import parse_header, read_header
from edgepack.gguf.types import GGMLType, TensorInfo, Value, ValueType, array, boolean, f32, string, u32
from edgepack.gguf.writer import GGUFWriter

LABEL = Path("test.gguf")
METADATA = {
    "general.architecture": string("llama"),
    "general.name": string("naïve 🦙"),
    "llama.block_count": u32(3),
    "llama.eps": f32(0.5),
    "llama.flag": boolean(True),
    "big": Value(ValueType.UINT64, 2**63),
    "small": Value(ValueType.INT8, -128),
    "double": Value(ValueType.FLOAT64, 0.1),
    "tokens": array(ValueType.STRING, ["<s>", "", "né"]),
    "types": array(ValueType.INT32, [1, -2, 3]),
    "flags": array(ValueType.BOOL, [True, False]),
    "nested": array(ValueType.ARRAY, [array(ValueType.INT16, [1]), array(ValueType.STRING, ["x"])]),
}
TENSORS = [
    TensorInfo("token_embd.weight", (5, 256), GGMLType.Q4_K),
    TensorInfo("norm", (3,), GGMLType.F32),
    TensorInfo("experts", (2, 3, 32), GGMLType.Q8_0),
]


def written(metadata: dict[str, Value] = METADATA, tensors: list[TensorInfo] = TENSORS) -> bytes:
    stream = io.BytesIO()
    writer = GGUFWriter(stream, metadata, tensors)
    writer.write_header()
    for number, tensor in enumerate(tensors):
        raw = bytes([number + 1]) * tensor.nbytes
        writer.write(tensor.name, raw[:7])
        writer.write(tensor.name, raw[7:])
    writer.close()
    assert len(stream.getvalue()) == writer.total_bytes
    return stream.getvalue()


WHOLE = written()


def test_what_is_written_is_read_back() -> None:
    header = parse_header(WHOLE, LABEL)
    assert dict(header.metadata) == METADATA
    assert [(t.name, t.shape, t.type) for t in header.tensors] == [(t.name, t.shape, t.type) for t in TENSORS]


def test_gguf_py_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    simple = {key: value for key, value in METADATA.items() if key != "nested"}
    path.write_bytes(written(simple))
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.name"].contents() == "naïve 🦙"
    assert reader.fields["tokens"].contents() == ["<s>", "", "né"]
    found = {
        t.name: (tuple(reversed(t.shape.tolist())), t.tensor_type.name, bytes(t.data.tobytes())) for t in reader.tensors
    }
    for number, tensor in enumerate(TENSORS):
        assert found[tensor.name] == (tensor.shape, tensor.type.name, bytes([number + 1]) * tensor.nbytes)


def test_we_read_what_gguf_py_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(7)
    writer.add_array("list", [1.5, 2.5])
    writer.add_tensor("w", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(path)
    assert header.get("llama.block_count") == 7
    assert header.get("list") == [1.5, 2.5]
    assert header.tensor("w").shape == (2, 3)


def test_a_file_truncated_at_any_byte_is_refused() -> None:
    whole = parse_header(WHOLE, LABEL)
    data_end = whole.data_start + max(t.offset + t.nbytes for t in whole.tensors)
    for length in range(data_end):
        with pytest.raises(GGUFError):
            parse_header(WHOLE[:length], LABEL)
    assert parse_header(WHOLE[:data_end], LABEL)  # only padding is missing, as llama.cpp accepts it


@given(st.integers(0, 400), st.integers(0, 255))
def test_any_changed_byte_of_the_header_is_read_or_refused(position: int, value: int) -> None:
    changed = bytearray(WHOLE)
    changed[position] = value
    try:
        header = parse_header(bytes(changed), LABEL)
    except GGUFError:
        return
    data = len(WHOLE) - header.data_start
    assert all(t.offset + t.nbytes <= data for t in header.tensors)


@given(st.binary(max_size=300))
def test_random_bytes_after_a_magic_are_refused(tail: bytes) -> None:
    with pytest.raises(GGUFError):
        parse_header(b"GGUF\x03\x00\x00\x00" + struct.pack("<QQ", 1, 1) + tail, LABEL)


def header_with(tensor: bytes, n_tensors: int = 1) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, 0) + tensor


def entry(name: str = "w", dims: tuple[int, ...] = (256,), kind: int = 0, offset: int = 0) -> bytes:
    raw = name.encode()
    return struct.pack("<Q", len(raw)) + raw + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "expected 4 bytes"),
        (b"GGML" + bytes(40), "expected magic"),
        (b"GGUF" + struct.pack("<I", 9) + bytes(40), "version 2 or 3, got 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0) + bytes(100), "tensor count: got 1152921504606846976"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60) + bytes(100), "metadata count: got"),
        (header_with(entry(dims=(2**62, 2**62))) + bytes(99), "expected 8507059"),
        (header_with(entry(dims=(0,))) + bytes(99), "expected positive dimensions"),
        (header_with(entry(dims=(1, 1, 1, 1, 1))) + bytes(99), "expected 1 to 4 dimensions, got 5"),
        (header_with(entry(kind=77)) + bytes(99), "unknown tensor type 77"),
        (header_with(entry(dims=(100,), kind=12)) + bytes(99), "multiple of 256, got 100"),
        (header_with(entry(offset=8)) + bytes(2000), "offset 8 is not a multiple of 32"),
        (header_with(entry("a") + entry("a", offset=1024), 2) + bytes(4000), "occurs twice"),
        (header_with(entry("a") + entry("b", offset=32), 2) + bytes(4000), "'b' overlaps"),
    ],
)
def test_hostile_headers_are_refused_by_name(raw: bytes, message: str) -> None:
    with pytest.raises(GGUFError, match=message):
        parse_header(raw, LABEL)


def test_the_writer_names_what_it_expects() -> None:
    writer = GGUFWriter(io.BytesIO(), {}, TENSORS)
    with pytest.raises(GGUFError, match="the header is due"):
        writer.write("norm", b"")
    writer.write_header()
    with pytest.raises(GGUFError, match=r"expected tensor 'token_embd.weight', got 'norm'"):
        writer.write("norm", b"")
    with pytest.raises(GGUFError, match="expected 720 bytes, got 721"):
        writer.write("token_embd.weight", bytes(721))
    writer.write("token_embd.weight", bytes(700))
    with pytest.raises(GGUFError, match="'token_embd.weight' is due, 20 bytes missing"):
        writer.close()
