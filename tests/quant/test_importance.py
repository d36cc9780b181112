"""Importance matrices: llama.cpp's files read and written, merged, fitted to tensors, and hostile ones refused."""

from __future__ import annotations

import struct
from io import BytesIO

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import CalibrationError
from edgepack.gguf.types import GGMLType, TensorInfo, Value, ValueType, string, u32
from edgepack.gguf.writer import GGUFWriter
from edgepack.quant.calibration.importance import ImportanceEntry, ImportanceMatrix, ImportanceSums, merge, statistics
from edgepack.quant.calibration.importance_file import read_importance, write_importance, write_legacy


def entry(seed: int, matrices: int = 1, columns: int = 8) -> ImportanceEntry:
    generator = np.random.default_rng(seed)
    sums = generator.uniform(1, 9, size=(matrices, columns)).astype(np.float32).astype(np.float64)
    return ImportanceEntry(sums, generator.integers(1, 500, size=matrices))


def matrix(seed: int = 0) -> ImportanceMatrix:
    names = ("blk.1.attn_q.weight", "blk.0.attn_q.weight")
    entries = {name: entry(seed + at) for at, name in enumerate(names)}
    return ImportanceMatrix({**entries, "blk.0.ffn_up_exps.weight": entry(seed + 9, 4)}, 3, 512, ("text.txt",))


def assert_equal(first: ImportanceMatrix, second: ImportanceMatrix) -> None:
    assert (first.chunk_count, first.chunk_size, first.datasets) == (
        second.chunk_count, second.chunk_size, second.datasets
    )  # fmt: skip
    assert set(first.entries) == set(second.entries)
    for name, values in first.entries.items():
        np.testing.assert_array_equal(values.sums, second.entries[name].sums)
        np.testing.assert_array_equal(values.counts, second.entries[name].counts)


@pytest.mark.parametrize("exact", [False, True])
def test_what_is_written_is_read_back(tmp_path, exact):
    write_importance(tmp_path / "i.gguf", matrix(), exact=exact)
    assert_equal(read_importance(tmp_path / "i.gguf"), matrix())


def test_gguf_py_sees_llama_cpps_layout(tmp_path):
    write_importance(tmp_path / "i.gguf", matrix())
    reader = gguf.GGUFReader(tmp_path / "i.gguf")
    assert reader.get_field("general.type").contents() == "imatrix"
    assert reader.get_field("imatrix.datasets").contents() == ["text.txt"]
    assert reader.get_field("imatrix.chunk_count").contents() == 3
    assert reader.get_field("imatrix.chunk_size").contents() == 512
    found = {tensor.name: tensor for tensor in reader.tensors}
    weights = [name.removesuffix(".in_sum2") for name in found if name.endswith(".in_sum2")]
    assert weights == sorted(weights)
    sums, counts = (found[f"blk.0.ffn_up_exps.weight.{part}"] for part in ("in_sum2", "counts"))
    assert (list(sums.shape), list(counts.shape)) == ([8, 4], [1, 4])
    np.testing.assert_array_equal(sums.data, matrix().entries["blk.0.ffn_up_exps.weight"].sums.astype(np.float32))


def legacy(entries: list[tuple[str, int, list[float]]], chunks: int = 2, dataset: bytes = b"old.txt") -> bytes:
    """As `save_imatrix_legacy` writes it."""
    out = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        out += np.array(values, dtype="<f4").tobytes()
    return out + struct.pack("<ii", chunks, len(dataset)) + dataset


def test_the_older_form_gives_means_over_calls(tmp_path):
    (tmp_path / "i.dat").write_bytes(legacy([("blk.0.attn_q.weight", 2, [2.0, 4.0, 8.0])]))
    found = read_importance(tmp_path / "i.dat")
    assert (found.chunk_count, found.datasets) == (2, ("old.txt",))
    np.testing.assert_allclose(found.entries["blk.0.attn_q.weight"].means, [[1.0, 2.0, 4.0]])


def test_the_older_form_may_end_after_its_entries(tmp_path):
    whole = legacy([("a", 1, [1.0])])
    (tmp_path / "i.dat").write_bytes(whole[: -len(b"old.txt") - 8])
    assert list(read_importance(tmp_path / "i.dat").entries) == ["a"]


def test_the_older_form_is_written_as_it_is_read(tmp_path):
    write_legacy(tmp_path / "i.dat", matrix())
    found = read_importance(tmp_path / "i.dat")
    assert (found.chunk_count, found.datasets) == (3, ("text.txt",))
    for name, values in matrix().entries.items():
        np.testing.assert_allclose(found.entries[name].means.reshape(values.means.shape), values.means, rtol=1e-6)
    one = matrix().entries["blk.0.attn_q.weight"]
    calls = -(-int(one.counts[0]) // 512)
    only = ImportanceMatrix({"blk.0.attn_q.weight": one}, 3, 512, ("text.txt",))
    write_legacy(tmp_path / "one.dat", only)
    expected = legacy([("blk.0.attn_q.weight", calls, list(one.means[0] * np.float32(calls)))], 3, b"text.txt")
    assert (tmp_path / "one.dat").read_bytes() == expected


def test_merging_weighs_every_matrix_by_its_tokens():
    first, second = matrix(0), matrix(50)
    both = merge([first, second])
    for name, values in both.entries.items():
        np.testing.assert_allclose(values.sums, first.entries[name].sums + second.entries[name].sums)
        np.testing.assert_array_equal(values.counts, first.entries[name].counts + second.entries[name].counts)
    assert both.chunk_count == 6
    assert_equal(first, matrix(0))


def test_matrices_of_different_models_do_not_merge():
    other = ImportanceMatrix({"blk.0.attn_q.weight": entry(1, columns=16)}, 1, 512)
    with pytest.raises(CalibrationError, match=r"blk\.0\.attn_q\.weight.*another model"):
        merge([matrix(), other])


def test_an_expert_without_tokens_weighs_all_channels_alike():
    values = ImportanceEntry(np.array([[4.0, 8.0], [0.0, 0.0]]), np.array([2, 0]))
    np.testing.assert_array_equal(values.means, [[2.0, 4.0], [1.0, 1.0]])


def test_weights_take_the_form_of_their_tensors():
    found = matrix().weights({"blk.0.attn_q.weight": (6, 8), "blk.0.ffn_up_exps.weight": (4, 6, 8), "other": (2, 2)})
    assert {name: values.shape for name, values in found.items()} == {
        "blk.0.attn_q.weight": (8,),
        "blk.0.ffn_up_exps.weight": (4, 8),
    }


def test_one_matrix_serves_every_expert():
    one = ImportanceMatrix({"a": entry(3)}, 1, 512)
    found = one.weights({"a": (4, 6, 8)})["a"]
    np.testing.assert_array_equal(found, np.repeat(one.entries["a"].means, 4, axis=0))


@pytest.mark.parametrize("shapes", [{}, {"blk.0.attn_q.weight": (6, 9)}, {"blk.0.ffn_up_exps.weight": (3, 6, 8)}])
def test_a_matrix_of_another_model_is_refused(shapes):
    with pytest.raises(CalibrationError, match="for another"):
        matrix().weights(shapes)


def test_statistics_are_those_of_the_means():
    flat = ImportanceEntry(np.full((1, 8), 6.0), np.array([3]))
    peak = ImportanceEntry(np.array([[0.0] * 7 + [24.0]]), np.array([3]))
    first, second = statistics(ImportanceMatrix({"blk.0.a.weight": flat, "blk.1.a.weight": peak}, 1, 512))
    assert (first.total, first.mean, first.active, first.entropy, first.evenness) == (16.0, 2.0, 1.0, 3.0, 1.0)
    assert (first.outliers, first.likeness, first.tokens) == (0.0, None, 3)
    assert (second.largest, second.smallest, second.active, second.entropy) == (8.0, 0.0, 0.125, 0.0)
    assert second.outliers == 0.125
    assert second.likeness == pytest.approx(1 / np.sqrt(8))


def test_sums_do_not_change_what_was_added():
    sums, values = ImportanceSums(), np.ones((1, 2))
    sums.add("a", values, np.array([1]))
    sums.add("a", values, np.array([1]))
    np.testing.assert_array_equal(values, np.ones((1, 2)))
    np.testing.assert_array_equal(sums.entries["a"].sums, [[2.0, 2.0]])


def gguf_bytes(tensors: dict[str, np.ndarray], metadata: dict[str, Value], kind: GGMLType = GGMLType.F32) -> bytes:
    stream = BytesIO()
    infos = [TensorInfo(name, values.shape, kind) for name, values in tensors.items()]
    writer = GGUFWriter(stream, metadata, infos)
    writer.write_header()
    for name, values in tensors.items():
        writer.write(name, values.astype("<f4").tobytes())
    writer.close()
    return stream.getvalue()


GOOD = {"a.in_sum2": np.ones((1, 4)), "a.counts": np.ones((1, 1))}
KEYS = {"general.type": string("imatrix"), "imatrix.chunk_count": u32(1), "imatrix.chunk_size": u32(512)}


@pytest.mark.parametrize(
    ("tensors", "metadata", "needle"),
    [
        (GOOD, {}, "general.type"),
        (GOOD, {**KEYS, "general.type": string("model")}, "general.type"),
        ({"a.in_sum2": np.ones((1, 4))}, KEYS, "sums with counts"),
        ({"a.counts": np.ones((1, 1))}, KEYS, "sums with counts"),
        ({**GOOD, "b.weight": np.ones((1, 1))}, KEYS, "sums with counts"),
        ({**GOOD, "a.in_sum2": np.full((1, 4), np.nan)}, KEYS, "finite"),
        ({**GOOD, "a.in_sum2": np.full((1, 4), -1.0)}, KEYS, "negative"),
        ({**GOOD, "a.counts": np.full((1, 1), -1.0)}, KEYS, "negative"),
        ({**GOOD, "a.counts": np.full((1, 1), np.inf)}, KEYS, "finite"),
        ({**GOOD, "a.counts": np.ones((3, 1))}, KEYS, "3 counts"),
        (GOOD, {**KEYS, "imatrix.chunk_size": u32(0)}, "chunk_size"),
        (GOOD, {**KEYS, "imatrix.chunk_count": Value(ValueType.STRING, "1")}, "chunk_count"),
    ],
)
def test_a_matrix_that_lies_is_one_line(tmp_path, tensors, metadata, needle):
    (tmp_path / "i.gguf").write_bytes(gguf_bytes(tensors, metadata))
    with pytest.raises(CalibrationError, match=needle) as error:
        read_importance(tmp_path / "i.gguf")
    assert "\n" not in str(error.value)


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    for whole in (gguf_bytes(GOOD, KEYS), legacy([("a", 1, [1.0, 2.0])])[: -len(b"old.txt") - 8]):
        for end in range(len(whole) - 28 if whole.startswith(b"GGUF") else len(whole)):
            (tmp_path / "i").write_bytes(whole[:end])
            with pytest.raises(CalibrationError):
                read_importance(tmp_path / "i")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120))
def test_no_bytes_make_the_reader_fail_otherwise(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzzed.dat"
    path.write_bytes(content)
    try:
        assert read_importance(path).entries
    except CalibrationError:
        pass
