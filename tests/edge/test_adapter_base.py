"""An adapter says which model it was made for, and is refused on every other one by name."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from lora_adapters import write_adapter
from tiny_models import Shape, write_random

from edgepack.cli import execute
from edgepack.edge.llama.adapter_base import file_digest, vectors_digest
from edgepack.edge.llama.check import check_adapter
from edgepack.errors import AdapterError
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.gguf.types import GGMLType, TensorInfo, string
from edgepack.gguf.writer import GGUFWriter

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("blk.0.attn_q.weight", "blk.1.ffn_down.weight")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    write_random(folder / "own.gguf", Shape())
    write_random(folder / "half.gguf", Shape(type=GGMLType.F16))
    write_other_norm(folder / "own.gguf", folder / "other.gguf")
    write_random(folder / "wide.gguf", Shape(feed_forward=192))
    write_random(folder / "short.gguf", Shape(layers=1))
    write_random(folder / "qwen.gguf", Shape(architecture="qwen2"))
    write_adapter(folder / "lora.gguf", folder / "own.gguf", NAMES)
    return folder


def write_other_norm(model: Path, output: Path) -> None:
    """A model of the same shape that was trained further: one number of a norm differs."""
    info, raw = read_header(model).tensor("output_norm.weight"), bytearray(model.read_bytes())
    start = read_header(model).data_start + info.offset
    raw[start : start + 4] = struct.pack("<f", 1.5)
    output.write_bytes(raw)


def stating(adapter: Path, output: Path, **stated: str) -> Path:
    """The adapter with keys of edgepack's own."""
    header, raw = read_header(adapter), adapter.read_bytes()
    extra = {f"edgepack.adapter.{key}": string(value) for key, value in stated.items()}
    with output.open("wb") as stream:
        writer = GGUFWriter(stream, {**header.metadata, **extra}, header.tensors)
        writer.write_header()
        for info in header.tensors:
            start = header.data_start + info.offset
            writer.write(info.name, raw[start : start + info.nbytes])
        writer.close()
    return output


def check(adapter: Path, model: Path) -> None:
    check_adapter(adapter, read_header(model), model)


@pytest.mark.parametrize(
    ("model", "told"),
    [("wide", "of width 128, the model's tensor of 192"), ("short", r"no tensor 'blk\.1"), ("qwen", "architecture is")],
)
def test_names_shapes_and_architecture_are_held_against_every_adapter(models: Path, model: str, told: str) -> None:
    check(models / "lora.gguf", models / "own.gguf")
    with pytest.raises(AdapterError, match=f"made for another model: .*{told}"):
        check(models / "lora.gguf", models / f"{model}.gguf")


def test_an_adapter_of_one_model_runs_on_its_quantisations_and_on_no_other_model(models: Path, tmp_path: Path) -> None:
    own = models / "own.gguf"
    digest = vectors_digest(own, read_header(own))
    adapter = stating(models / "lora.gguf", tmp_path / "taught.gguf", base=digest)
    check(adapter, own)
    check(adapter, models / "half.gguf")
    with pytest.raises(AdapterError, match="another model: norms and biases"):
        check(adapter, models / "other.gguf")


def test_a_recovery_adapter_runs_on_its_one_file_alone(models: Path, tmp_path: Path) -> None:
    own = models / "own.gguf"
    adapter = stating(models / "lora.gguf", tmp_path / "r.gguf", base_file=file_digest(own, read_header(own)))
    check(adapter, own)
    with pytest.raises(AdapterError, match="another file"):
        check(adapter, models / "half.gguf")


def test_metadata_that_changes_later_changes_no_digest(models: Path, tmp_path: Path) -> None:
    own = models / "own.gguf"
    noted = stating(own, tmp_path / "noted.gguf", about="a certificate, say")
    for digest in (vectors_digest, file_digest):
        assert digest(own, read_header(own)) == digest(noted, read_header(noted))


def test_every_command_that_takes_an_adapter_refuses_that_of_another_model(
    models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    adapter, wide = str(models / "lora.gguf"), str(models / "wide.gguf")
    assert execute(["run", wide, "--prompt", "a", "-n", "1", "--adapter", adapter]) == 3
    assert execute(["pack", wide, "--include", adapter, "-o", str(tmp_path / "x.edgepack")]) == 3
    assert capfd.readouterr().err.count("made for another model") == 2
    assert not list(tmp_path.iterdir())


def test_a_tensor_that_is_no_factor_is_left_to_llama_cpp(models: Path, tmp_path: Path) -> None:
    header = read_header(models / "lora.gguf")
    odd = tmp_path / "odd.gguf"
    with odd.open("wb") as stream:
        infos = [TensorInfo("something.else", (2, 2), GGMLType.F32)]
        writer = GGUFWriter(stream, header.metadata, infos)
        writer.write_header()
        writer.write("something.else", bytes(16))
        writer.close()
    check(odd, models / "own.gguf")
    assert read_header(odd).get(keys.ADAPTER_BASE) is None
