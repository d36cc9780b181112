"""A variant decodes to the same plain GGUF on every run and thread count; what is broken is refused by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepack.edge.install.native import native_header, plan_native, write_native
from edgepack.errors import CodecError, EdgepackError, UsageError
from edgepack.export.coded.plan import parse_tensor_codecs, plan_variant
from edgepack.export.coded.write import write_variant
from edgepack.export.mapped import MappedModel
from edgepack.export.rows import ArrayRows
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.gguf.types import GGMLType, Value, string, u32
from edgepack.gguf.variant import is_variant, read_variant
from edgepack.gguf.writer import GGUFWriter
from edgepack.quant.codecs.ggml.codec import dequantize_rows
from edgepack.quant.codecs.targets import find_edge_target
from edgepack.quant.types.mixtures import ModelFacts

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS = 256
NAMES = ("blk.0.attn_q.weight", "blk.0.ffn_down.weight", "blk.0.ffn_up_exps.weight")


@pytest.fixture(scope="module")
def model() -> MappedModel:
    generator = np.random.default_rng(4)

    def normal(*shape: int) -> ArrayRows:
        return ArrayRows(generator.standard_normal(shape, dtype=np.float32) * np.float32(0.02))

    tensors = {
        "blk.0.attn_norm.weight": normal(COLUMNS),
        NAMES[0]: normal(40, COLUMNS),
        NAMES[1]: normal(24, 172),
        NAMES[2]: normal(3, 16, COLUMNS),
    }
    metadata = {"general.architecture": string("llama"), "llama.block_count": u32(1)}
    return MappedModel("synthetic", metadata, tensors, ModelFacts("llama", 1, 4, 4))


@pytest.fixture(scope="module")
def variant(model: MappedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("variant") / "mixed.gguf"
    overrides = parse_tensor_codecs(["attn_q=seedlm4:register_bits=8+nf4", "exps=ternary:scale=row"])
    write_variant(plan_variant(model, find_edge_target("edge-nf4"), overrides), path)
    return path


def rewritten(source: Path, output: Path, changes: dict[str, Value | None], drop: str = "") -> Path:
    """A copy with metadata changed (None removes a key) and without the tensors whose name contains `drop`."""
    header = read_header(source)
    raw = source.read_bytes()[header.data_start :]
    metadata = {key: value for key, value in {**header.metadata, **changes}.items() if value is not None}
    kept = [info for info in header.tensors if not drop or drop not in info.name]
    with output.open("wb") as stream:
        writer = GGUFWriter(stream, metadata, kept)
        writer.write_header()
        for info in kept:
            writer.write(info.name, raw[info.offset : info.offset + info.nbytes])
    return output


def described(source: Path, name: str, **changes: Any) -> Value:
    fields = json.loads(read_header(source).get(keys.VARIANT_TENSOR + name))
    return string(json.dumps({**fields, **changes}))


def test_any_reader_lists_a_variant(variant: Path) -> None:
    from gguf import GGUFReader

    names = [tensor.name for tensor in GGUFReader(variant).tensors]
    assert "blk.0.attn_q.weight.seedlm.seeds" in names
    assert "blk.0.attn_q.weight.1.nf4.weights" in names
    assert max(map(len, names)) < 64


def test_the_plain_gguf_has_the_names_shapes_and_metadata_of_the_model(
    variant: Path, model: MappedModel, tmp_path: Path
) -> None:
    output = tmp_path / "plain.gguf"
    size = write_native(plan_native(variant, GGMLType.F32), output)
    header = read_header(output)
    assert output.stat().st_size == size
    assert {info.name: info.shape for info in header.tensors} == {n: rows.shape for n, rows in model.tensors.items()}
    assert not is_variant(header)
    assert header.get("llama.block_count") == 1
    raw = output.read_bytes()
    for info in header.tensors:
        start = header.data_start + info.offset
        decoded = dequantize_rows(info.type, raw[start : start + info.nbytes], info.rows, info.shape[-1])
        weight = model.tensors[info.name].read(0, info.rows)
        error = ((decoded - weight) ** 2).sum() / (weight**2).sum()
        limit = {NAMES[0]: 0.002, NAMES[1]: 0.02, NAMES[2]: 0.4}.get(info.name, 0.0)
        assert error <= limit
        if limit:
            stated = next(
                tensor.error for tensor in read_variant(read_header(variant)).coded if tensor.name == info.name
            )
            assert error == pytest.approx(stated, rel=1e-3)


def test_decoding_is_the_same_bytes_on_every_run_and_thread_count(variant: Path, tmp_path: Path) -> None:
    results = set()
    for threads in (1, 2, 5):
        output = tmp_path / f"{threads}.gguf"
        write_native(plan_native(variant), output, threads=threads)
        results.add(output.read_bytes())
    assert len(results) == 1


def test_the_header_is_known_before_anything_is_decoded(variant: Path, tmp_path: Path) -> None:
    write_native(plan_native(variant), tmp_path / "native.gguf")
    planned, written = native_header(read_header(variant)), read_header(tmp_path / "native.gguf")
    assert planned.tensors == written.tensors
    assert planned.metadata == written.metadata
    assert (planned.data_start, planned.file_bytes) == (written.data_start, written.file_bytes)


def test_coding_is_the_same_bytes_on_every_run(variant: Path, model: MappedModel, tmp_path: Path) -> None:
    overrides = parse_tensor_codecs(["attn_q=seedlm4:register_bits=8+nf4", "exps=ternary:scale=row"])
    write_variant(plan_variant(model, find_edge_target("edge-nf4"), overrides), tmp_path / "again.gguf", threads=1)
    assert (tmp_path / "again.gguf").read_bytes() == variant.read_bytes()


def test_native_types_add_at_most_a_tenth_of_the_codecs_error(
    variant: Path, model: MappedModel, tmp_path: Path
) -> None:
    paths = {}
    for label, kind in (("exact", GGMLType.F32), ("native", None)):
        paths[label] = tmp_path / label
        write_native(plan_native(variant, kind), paths[label])
    headers = {label: read_header(path) for label, path in paths.items()}
    for info in headers["exact"].tensors:
        arrays = []
        for label, header in headers.items():
            entry = header.tensor(info.name)
            start = header.data_start + entry.offset
            raw = paths[label].read_bytes()[start : start + entry.nbytes]
            arrays.append(dequantize_rows(entry.type, raw, entry.rows, entry.shape[-1]))
        codec_error = ((arrays[0] - model.tensors[info.name].read(0, info.rows)) ** 2).sum()
        assert ((arrays[1] - arrays[0]) ** 2).sum() <= 0.12 * codec_error + 1e-12


@pytest.mark.parametrize(
    ("changes", "drop", "message"),
    [
        ({keys.VARIANT_VERSION: u32(2)}, "", "made by a newer edgepack: variant version 2"),
        ({keys.VARIANT_VERSION: None}, "", "not of the variant"),
        ({keys.VARIANT_TENSORS: string("x")}, "", "expected an array"),
        ({keys.VARIANT_TENSOR + NAMES[0]: None}, "", "description is missing"),
        ({keys.VARIANT_TENSOR + NAMES[0]: string("[" * 60000)}, "", "not JSON"),
        ({keys.VARIANT_TENSOR + NAMES[0]: string("7")}, "", "expected a JSON object"),
        ({}, "nf4.absmax", "broken.gguf: tensor 'blk.0.attn_q.weight': codec 'nf4': component 'absmax' is missing"),
        ({}, "seedlm", "broken.gguf: tensor 'blk.0.attn_q.weight': codec 'seedlm': component 'seeds' is missing"),
    ],
)
def test_broken_files_are_refused_by_name(
    variant: Path, tmp_path: Path, changes: dict[str, Value | None], drop: str, message: str
) -> None:
    broken = rewritten(variant, tmp_path / "broken.gguf", changes, drop)
    with pytest.raises(CodecError, match=message):
        plan_native(broken)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": [2**39, 2**39]}, "coded weights in a file of"),
        ({"shape": [48, 512]}, "component 'trits'"),
        ({"shape": []}, "expected a shape"),
        ({"shape": [-1, 4]}, "expected a shape"),
        ({"native": "Q9_K"}, "made by a newer edgepack: unknown native type"),
        ({"error": "small"}, "expected a finite error"),
        ({"stages": []}, "stages"),
        ({"stages": [{"codec": "quantum", "version": 1, "parameters": {}}]}, "newer edgepack: unknown codec 'quantum'"),
        ({"stages": [{"codec": "../x", "version": 1, "parameters": {}}]}, "expected a codec's name"),
        ({"stages": [{"codec": "ternary", "version": 9, "parameters": {"scale": "row"}}]}, "newer edgepack"),
        ({"stages": [{"codec": "ternary", "version": 1, "parameters": {"scale": "galaxy"}}]}, "'scale'"),
        ({"stages": [{"codec": "ternary", "version": 1, "parameters": {"scale": ["row"]}}]}, "plain parameters"),
    ],
)
def test_contradictory_descriptions_are_refused_before_anything_is_decoded(
    variant: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    changes: dict[str, Value | None] = {keys.VARIANT_TENSOR + NAMES[2]: described(variant, NAMES[2], **fields)}
    broken = rewritten(variant, tmp_path / "broken.gguf", changes)
    with pytest.raises(CodecError, match=message):
        plan_native(broken)


def test_impossible_values_leave_no_output(variant: Path, tmp_path: Path) -> None:
    header = read_header(variant)
    raw = bytearray(variant.read_bytes())
    info = header.tensor(f"{NAMES[0]}.seedlm.seeds")
    raw[header.data_start + info.offset] = 0
    hostile, output = tmp_path / "hostile.gguf", tmp_path / "out.gguf"
    hostile.write_bytes(raw)
    with pytest.raises(CodecError, match="hostile.gguf: tensor 'blk.0.attn_q.weight': .* seed 0 is not a state"):
        write_native(plan_native(hostile), output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hostile.gguf"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), whole=st.booleans())
def test_any_changed_byte_gives_a_plain_error_or_a_whole_file(
    variant: Path, tmp_path: Path, position: float, byte: int, whole: bool
) -> None:
    raw = bytearray(variant.read_bytes())
    reach = len(raw) if whole else read_header(variant).data_start
    raw[int(position * reach)] = byte
    hostile, output = tmp_path / "hostile.gguf", tmp_path / "out.gguf"
    hostile.write_bytes(raw)
    output.unlink(missing_ok=True)
    try:
        plan = plan_native(hostile)
        write_native(plan, output, threads=1)
    except EdgepackError:
        assert not output.exists()
    else:
        assert output.stat().st_size == plan.total_bytes


def test_types_that_cannot_hold_weights_are_refused(variant: Path) -> None:
    for kind in (GGMLType.I8, GGMLType.Q8_K, GGMLType.IQ2_XXS):
        with pytest.raises(UsageError, match=kind.name):
            plan_native(variant, kind)


@pytest.mark.parametrize(
    "text", ["attn", "(=nf4", "attn=warp", "attn=nf4:speed=9", "attn=ternary:scale=galaxy", "=nf4"]
)
def test_wrong_codec_options_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError):
        parse_tensor_codecs([text])
