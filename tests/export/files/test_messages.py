"""A file that is not what was expected is said to be what it is, before any work, and never with a traceback."""

from __future__ import annotations

import io
import json
import pickle
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.tiny_llama import change

from edgepack.cli import execute as run
from edgepack.errors import CheckpointError, EdgepackError, TokenizerError, UsageError
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.formats.torch_file import TorchFile
from edgepack.export.mapped_model import open_model
from edgepack.export.plan import PlanOptions, collectable_importance, plan_export
from edgepack.export.tokenizer.vocabulary import open_vocabulary
from edgepack.file_kinds import describe
from edgepack.gguf.types import u32
from edgepack.model import read_tensor
from edgepack.quant.types.choice import Overrides
from edgepack.quant.types.targets import find_target, find_type

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Tiny = Callable[..., Path]

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 4096\n"
SAFE, TORCH = "model.safetensors", "pytorch_model.bin"


def message(path: Path) -> str:
    with pytest.raises(EdgepackError) as error:
        open_model(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "name", [SAFE, "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_a_git_lfs_pointer_is_said_to_be_one(speaking: Tiny, name: str) -> None:
    folder = speaking()
    (folder / name).write_bytes(POINTER)
    assert "git lfs pull" in message(folder)


def test_pointers_in_place_of_other_weights_are_said_to_be_that(speaking: Tiny, tmp_path: Path) -> None:
    folder = speaking()
    (folder / SAFE).unlink()
    (folder / TORCH).write_bytes(POINTER)
    assert "git lfs pull" in message(folder)
    (tmp_path / "x.gguf").write_bytes(POINTER)
    assert "git lfs pull" in message(tmp_path / "x.gguf")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "tokenizer.model").write_bytes(POINTER)
    with pytest.raises(TokenizerError, match="git lfs pull"):
        open_vocabulary(folder, {})


def test_a_big_endian_gguf_is_said_to_be_one(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "be.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("a", np.ones((2, 32), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    assert "big-endian" in message(tmp_path / "be.gguf")


FILES = {
    "a safetensors file": lambda folder: folder / SAFE,
    "a JSON file": lambda folder: folder / "config.json",
    "a zip file": lambda folder: torch.save({"x": torch.ones(1)}, folder / TORCH) or folder / TORCH,
    "an HTML page": lambda folder: _write(folder / "x.gguf", b"<!DOCTYPE html><html>404"),
    "an empty file": lambda folder: _write(folder / "x.gguf", b""),
    "before GGUF (ggjt)": lambda folder: _write(folder / "x.bin", b"tjgg" + bytes(60)),
    "a gzip file": lambda folder: _write(folder / "x.gguf", b"\x1f\x8b" + bytes(60)),
}


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_is_no_gguf_is_said_to_be_what_it_is(tiny: Tiny, what: str) -> None:
    assert what in message(FILES[what](tiny()))


FOLDERS = {
    "an adapter lies there": ["adapter_config.json", "adapter_model.safetensors"],
    "a GGUF lies there": ["model-Q4_K_M.gguf"],
    "publisher's own layout": ["params.json", "consolidated.00.pth"],
    "TensorFlow": ["tf_model.h5"],
    "Hugging Face cache": ["snapshots", "refs"],
    "a training checkpoint": ["last.ckpt"],
    "ONNX": ["model.onnx"],
}


@pytest.mark.parametrize("what", FOLDERS)
@pytest.mark.parametrize("config", [False, True])
def test_a_folder_without_weights_says_what_lies_there(tmp_path: Path, what: str, config: bool) -> None:
    for name in FOLDERS[what]:
        (tmp_path / name).write_bytes(b"{}")
    if config:
        (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=what):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(("shard", "index"), [("model-00001-of-00002.safetensors", "model.safetensors.index.json"),
                                              ("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json")])  # fmt: skip
def test_shards_without_an_index_are_said_to_lack_it(tiny: Tiny, shard: str, index: str) -> None:
    folder = tiny()
    (folder / SAFE).rename(folder / shard)
    with pytest.raises(CheckpointError, match=index):
        open_checkpoint(folder)


def test_an_unknown_family_is_pointed_to_a_gguf_of_it(speaking: Tiny) -> None:
    folder = speaking()
    change(folder / "config.json", architectures=["NobodysForCausalLM"])
    assert "give a GGUF of the model" in message(folder)


def test_weights_of_whole_numbers_are_refused_before_they_are_read(speaking: Tiny) -> None:
    folder = speaking()
    tensors = load_file(folder / SAFE)
    name = "model.layers.1.mlp.down_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.int32)}, folder / SAFE)
    assert "got i32" in message(folder)


def test_a_quantisation_that_no_tensor_has_is_said(tiny: Tiny) -> None:
    folder = tiny()
    change(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert any("no tensor is packed" in note for note in open_checkpoint(folder).notes)


def test_quantize_config_is_read_only_where_config_says_nothing(tiny: Tiny) -> None:
    folder = tiny()
    change(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 8}))
    assert any("config.json's 4" in note for note in open_checkpoint(folder).notes)


@pytest.mark.parametrize(
    ("pattern", "needle"),
    [
        ("ffn_dwn=q6_k", "matches no tensor"),
        (r"blk\.9\.=q6_k", "matches no tensor"),
        ("attn_norm=q8_0", "keep their type"),
    ],
)
def test_a_type_pattern_that_changes_nothing_is_an_error(books: Path, capsys, pattern: str, needle: str) -> None:
    command = ["export", str(books), "--target", "gguf-q4km", "--dry-run", "--tensor-type", pattern]
    assert run(command) == UsageError.exit_code
    assert needle in capsys.readouterr().err
    assert run([*command[:-1], "ffn_down=q6_k"]) == 0


def test_a_type_by_hand_for_a_target_of_floats_is_an_error(books: Path, capsys) -> None:
    command = ["export", str(books), "--dry-run", "--tensor-type", "ffn_down=q8_0", "--target"]
    assert run([*command, "gguf-f16"]) == UsageError.exit_code
    assert "expected a quantised target" in capsys.readouterr().err
    assert run([*command, "gguf-q4km"]) == 0


def test_a_layer_of_prediction_that_needs_importance_is_refused_by_the_plan(books: Path) -> None:
    model = open_model(books)
    blocks = int(model.metadata["llama.block_count"].value)
    model = model.__class__(**{**vars(model), "metadata": {**model.metadata, "llama.nextn_predict_layers": u32(1)}})
    importance = collectable_importance(model)
    assert not any(name.startswith(f"blk.{blocks - 1}.") for name in importance)
    with pytest.raises(EdgepackError, match="predicts further tokens") as error:
        plan_export(model, find_target("iq2xs"), PlanOptions(importance=importance))
    assert "--calibration" not in str(error.value)
    overrides = Overrides(((rf"blk\.{blocks - 1}\.", find_type("q4_k")),))
    plan_export(model, find_target("iq2xs"), PlanOptions(overrides, importance))


def test_what_the_plan_refuses_it_refuses_before_the_text_is_run(
    books: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the text was run")

    monkeypatch.setattr("edgepack.pipeline.importance.ImportanceRun.collect", never)
    (tmp_path / "text.txt").write_text("a " * 2000)
    command = ["export", str(books), "--target", "iq2_xs", "--calibration", str(tmp_path / "text.txt"),
               "-o", str(tmp_path / "x.gguf"), "--tensor-type", "nothing=q8_0"]  # fmt: skip
    assert run(command) == UsageError.exit_code
    assert "matches no tensor" in capsys.readouterr().err


def stored(**tensors: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(tensors, stream)
    return stream.getvalue()


VALUE = torch.arange(12.0).reshape(3, 4)
READABLE = {
    "parameters": torch.nn.Parameter(VALUE),
    "a transposed view": VALUE.T,
    "an expanded row": VALUE[:1].expand(3, 4),
    "a slice": torch.arange(48.0).reshape(6, 8)[::2, ::2],
    "a negative view": torch.complex(VALUE, VALUE).conj().imag,
    "a buffer": torch.nn.Buffer(VALUE),
    "bfloat16 that learns": torch.nn.Parameter(VALUE.bfloat16()),
    "a permuted stack": torch.arange(24.0).reshape(2, 3, 4).permute(1, 0, 2),
    "nothing": torch.empty(0, 4),
    "a scalar": torch.tensor(3.0),
}


@pytest.mark.parametrize("kind", READABLE)
def test_whatever_has_rows_is_read_as_torch_has_it(tmp_path: Path, kind: str) -> None:
    (tmp_path / TORCH).write_bytes(stored(x=READABLE[kind], y=VALUE))
    file = TorchFile(tmp_path / TORCH)
    expected = torch.load(tmp_path / TORCH, weights_only=True)["x"].detach().resolve_neg().float().numpy()
    np.testing.assert_array_equal(read_tensor(file, "x"), expected)
    spec = file.specs["x"]
    parts = [file.read_rows("x", at, at + 1) for at in range(spec.rows)]
    if parts:
        np.testing.assert_array_equal(np.concatenate(parts).reshape(spec.shape), expected)
        raw = file.read_bytes("x", 1, spec.rows * spec.columns * (2 if spec.dtype == "bf16" else 4))
        assert len(raw) == spec.rows * spec.columns * (2 if spec.dtype == "bf16" else 4) - 1


def test_two_names_of_one_tensor_are_two_tensors(tmp_path: Path) -> None:
    (tmp_path / TORCH).write_bytes(stored(x=VALUE, y=VALUE, z=VALUE[1:]))
    file = TorchFile(tmp_path / TORCH)
    np.testing.assert_array_equal(read_tensor(file, "y"), VALUE.numpy())
    np.testing.assert_array_equal(read_tensor(file, "z"), VALUE[1:].numpy())


REFUSED = {
    "sparse": VALUE.to_sparse,
    "sparse rows": VALUE.to_sparse_csr,
    "quantised": lambda: torch.quantize_per_tensor(VALUE, 0.1, 0, torch.quint8),
    "meta": lambda: VALUE.to("meta"),
    "complex": lambda: torch.complex(VALUE, VALUE),
    "nested": lambda: torch.nested.nested_tensor([VALUE, VALUE[:1]]),
    "a dictionary": lambda: {"weight": VALUE},
    "a list": lambda: [VALUE],
    "a number": lambda: 3,
    "none": lambda: None,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_whatever_has_no_rows_is_refused_in_a_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / TORCH).write_bytes(stored(y=VALUE, x=REFUSED[kind]()))
    with pytest.raises(CheckpointError) as error:
        TorchFile(tmp_path / TORCH)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60)
@given(st.binary(max_size=200), st.integers(0, 1500), st.integers(0, 3))
def test_no_bytes_make_the_reader_fail_otherwise(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int, form: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.bin"
    whole = stored(x=VALUE, y=torch.nn.Parameter(VALUE))
    forms = (
        junk,
        whole[:at] + junk + whole[at + len(junk) :],
        whole[: len(whole) - at],
        pickle.dumps({"x": junk.hex()}),
    )
    path.write_bytes(forms[form])
    refused: list[str] = []
    try:
        file = TorchFile(path)
        for name in file.specs:
            file.read_bytes(name, 0, 1)
    except CheckpointError as error:
        refused = [str(error)]
    assert not any("\n" in text for text in refused)


def test_a_description_is_a_noun_phrase_or_nothing() -> None:
    assert describe(b"") == "an empty file"
    assert describe(b"GGUF" + bytes(60)) == "a GGUF"
    assert describe(b"\x00" * 64) is None
