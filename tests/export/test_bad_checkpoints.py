"""Every broken checkpoint ends in one line, the right exit code, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from edgepack.cli import execute as run
from edgepack.errors import CheckpointError
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.formats.safetensors_file import SafetensorsFile
from edgepack.export.rules.mapping import families
from edgepack.export.rules.without_graph import OTHER_GRAPH, WITHOUT_GRAPH

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def model(books: Path, tmp_path: Path) -> Path:
    """A copy of the bundled model that may be broken."""
    return shutil.copytree(books, tmp_path / "model")


def edit_config(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = model / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def refused(model: Path, capsys: pytest.CaptureFixture[str], *extra: str) -> tuple[int, str]:
    """Export `model`; check that one line came out and no file; give the exit code and the line."""
    folder = model.parent / "out"
    folder.mkdir(exist_ok=True)
    code = run(["export", str(model), "--target", "q5km", "-o", str(folder / "x.gguf"), *extra])
    assert list(folder.iterdir()) == []
    error = capsys.readouterr().err
    assert error.startswith("edgepack: error: ")
    assert error.count("\n") == 1
    return code, error


def read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_safetensors(path: Path, header: dict[str, Any] | bytes, body: bytes) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)


def without(name: str, header: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """The same file without one tensor, and without a hole."""
    start, stop = header[name]["data_offsets"]
    kept = {key: dict(item) for key, item in header.items() if key != name}
    for item in kept.values():
        if "data_offsets" in item and item["data_offsets"][0] >= stop:
            item["data_offsets"] = [place - (stop - start) for place in item["data_offsets"]]
    return kept, body[:start] + body[stop:]


def split_into_shards(model: Path) -> list[str]:
    """The same model in two shards with an index; gives the shards' names."""
    header, body = read_header(model / "model.safetensors")
    header.pop("__metadata__", None)
    names = sorted(header)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weight_map = {}
    for number, shard in enumerate(shards):
        own, parts, offset = {}, [], 0
        for name in names[number::2]:
            start, stop = header[name]["data_offsets"]
            own[name] = header[name] | {"data_offsets": [offset, offset + stop - start]}
            parts.append(body[start:stop])
            offset += stop - start
            weight_map[name] = shard
        write_safetensors(model / shard, own, b"".join(parts))
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return shards


def test_shards_give_the_same_file_as_one(books: Path, model: Path, tmp_path: Path) -> None:
    split_into_shards(model)
    for source, name in ((books, "a"), (model, "b")):
        renamed = source if source.name == "books-llama-6m" else source.rename(tmp_path / "books-llama-6m")
        assert run(["export", str(renamed), "--target", "q8", "-o", str(tmp_path / f"{name}.gguf")]) == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_an_absent_shard_is_named(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = split_into_shards(model)
    (model / shards[1]).unlink()
    code, error = refused(model, capsys)
    assert code == 3
    assert f"is in '{shards[1]}', which is absent" in error


def test_a_truncated_shard_is_named(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = model / split_into_shards(model)[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    code, error = refused(model, capsys)
    assert code == 3
    assert shard.name in error
    assert "file ends after" in error


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "", ".."])
def test_an_index_that_leaves_the_folder_is_refused(name: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split_into_shards(model)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    code, error = refused(model, capsys)
    assert code == 3
    assert "expected a file name in this folder" in error


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size", "architectures"])
def test_a_needed_key_is_named(key: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_config(model, lambda config: config.pop(key))
    code, error = refused(model, capsys)
    assert code == 3
    assert f"'{key}'" in error


def test_an_unknown_architecture_lists_the_known(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_config(model, lambda config: config.update(architectures=["NoSuchForCausalLM"]))
    code, error = refused(model, capsys)
    assert code == 4
    assert "unknown architecture 'NoSuchForCausalLM': give a GGUF of the model instead" in error
    assert "LlamaForCausalLM" in error


def test_an_architecture_without_a_graph_is_refused_by_that_reason(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_config(model, lambda config: config.update(architectures=["RecurrentGemmaForCausalLM"]))
    code, error = refused(model, capsys)
    assert code == 4
    assert "RecurrentGemmaForCausalLM: the installed llama.cpp has no graph of this architecture" in error


def test_no_known_architecture_is_said_to_lack_a_graph() -> None:
    assert not (WITHOUT_GRAPH | set(OTHER_GRAPH)) & set(families())


def test_a_setting_that_the_graph_cannot_honour_is_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_config(model, lambda config: config.update(hidden_act="gelu"))
    code, error = refused(model, capsys)
    assert code == 4
    assert "hidden_act is 'gelu'" in error


@pytest.mark.parametrize(("key", "value"), [("hidden_size", -1), ("hidden_size", "256"), ("num_hidden_layers", 2**40)])
def test_nonsense_in_the_config_is_refused(
    key: str, value: object, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_config(model, lambda config: config.update({key: value}))
    code, error = refused(model, capsys)
    assert code == 3
    assert f"{key}: expected a positive integer, got {value!r}" in error


def test_shapes_that_contradict_the_config_are_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_config(model, lambda config: config.update(intermediate_size=512))
    code, error = refused(model, capsys)
    assert code == 3
    assert "config.json makes" in error
    assert "[512, 256], the checkpoint gives [768, 256]" in error


@pytest.mark.parametrize(("weight", "word"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_a_weight_that_is_no_number_is_named_with_its_position(
    weight: float, word: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = model / "model.safetensors"
    header, body = read_header(path)
    name = "model.layers.3.self_attn.q_proj.weight"
    changed = bytearray(body)
    at = header[name]["data_offsets"][0] + 2 * (17 * 256 + 5)
    changed[at : at + 2] = (np.array([weight], dtype=np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    write_safetensors(path, header, bytes(changed))
    code, error = refused(model, capsys)
    assert code == 8
    assert f"tensor '{name}': expected finite weights, got {word} at [17, 5]" in error


def test_a_missing_tensor_and_an_unknown_one_are_named(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model / "model.safetensors"
    header, body = read_header(path)
    write_safetensors(path, *without("model.norm.weight", header, body))
    assert "lacks tensor 'model.norm.weight'" in refused(model, capsys)[1]
    write_safetensors(path, header | {"model.extra": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, body)
    assert "has tensor 'model.extra', which llama does not use" in refused(model, capsys)[1]


def test_an_unknown_target_suggests_the_nearest(books: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(books), "--target", "gguf-q5kn"]) == 2
    assert "did you mean 'gguf-q5km'?" in capsys.readouterr().err


def test_an_absent_output_folder_is_named_before_work(
    books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(books), "--target", "q8", "-o", str(tmp_path / "absent/x.gguf")]) == 2
    assert "absent' does not exist" in capsys.readouterr().err


def test_a_disk_that_is_too_small_is_found_before_work(
    books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    assert run(["export", str(books), "--target", "q8", "-o", str(tmp_path / "x.gguf")]) == 9
    assert "needs 6.27 MB, disk has 5 kB free" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "expected a JSON object"),
        (b'{"a": 1}', "unknown dtype"),
        (b'{"a": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}', "unknown dtype 'F31'"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', "expected a shape"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "needs 8 bytes, its range has 4"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', "expected 8 bytes, file ends after 4"),
        (
            b'{"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},'
            b' "b": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}}',
            "'b' overlaps",
        ),
        (
            b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},'
            b' "a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}',
            "'a' occurs twice",
        ),
        (b'{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 4]}}', "needs 73786976"),
    ],
)
def test_hostile_safetensors_headers_are_refused(header: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, header, bytes(4))
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFile(path)


@pytest.mark.parametrize(
    ("offsets", "body", "said"),
    [
        ([4, 8], 8, "4 bytes before it belong to no tensor"),
        ([0, 4], 9, "5 bytes behind the last tensor belong to none"),
    ],
)
def test_holes_and_trailing_bytes_are_refused_as_the_format_s_own_library_does(
    offsets: list[int], body: int, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": {"dtype": "F32", "shape": [1], "data_offsets": offsets}}, bytes(body))
    with pytest.raises(SafetensorError), safe_open(path, "numpy"):
        pass
    with pytest.raises(CheckpointError, match=said):
        SafetensorsFile(path)


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(CheckpointError, match="expected 1152921504606846976 bytes, file ends after 2"):
        SafetensorsFile(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=200))
def test_random_bytes_are_no_safetensors_file(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    try:
        assert SafetensorsFile(path).specs == {}
    except CheckpointError:
        pass


def test_a_folder_without_weights_says_what_it_expects(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected config.json, found none"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no weights: expected model.safetensors"):
        open_checkpoint(tmp_path)
