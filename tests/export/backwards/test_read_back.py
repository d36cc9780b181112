"""A GGUF of every architecture, read backwards: transformers loads the folder and gives the same logits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from references.family_oracle import exported, token_ids
from references.read_back import READ_BACK, REFUSED, last_values, tolerance
from references.tiny_checkpoints import TinyModel, random_model, write_checkpoint
from safetensors import safe_open

from edgepack.errors import UnsupportedModelError, UsageError
from edgepack.export.backwards.checkpoint import read_back
from edgepack.export.backwards.written import plan_folder
from edgepack.export.mapped_model import map_checkpoint
from edgepack.gguf.reader import read_header
from edgepack.pipeline.checkpoint import write_checkpoint as write_folder
from edgepack.pipeline.export import run_export
from edgepack.pipeline.request import ExportRequest

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def loaded(folder: Path, name: str) -> tuple[Any, dict[str, Any]]:
    return getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )


def outputs(model: Any, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    with torch.no_grad():
        return last_values(model.eval()(torch.tensor(ids)[None]))


@pytest.mark.parametrize("tiny", READ_BACK, ids=lambda tiny: tiny.name)
def test_transformers_gives_the_same_logits_of_a_gguf_read_back(tiny: TinyModel, books: Path, tmp_path: Path) -> None:
    model = random_model(tiny)
    write_checkpoint(model, tmp_path / "model", books, fused_experts=tiny.fused_experts)
    found = write_folder(exported(tmp_path / "model", tmp_path / "f32.gguf"), tmp_path / "back")
    again, info = loaded(tmp_path / "back", found.model_class)
    assert not info["unexpected_keys"]
    assert all("pooler" in name for name in info["missing_keys"])
    ids = token_ids()
    expected = outputs(model, ids)
    spread = max(float(expected.std()), 0.1)  # a ranker gives one number
    assert np.abs(outputs(again, ids) - expected).max() <= spread * tolerance(tiny, tmp_path / "f32.gguf")


@pytest.mark.parametrize("tiny", REFUSED, ids=lambda tiny: tiny.name)
def test_a_family_that_cannot_be_read_back_says_why(tiny: TinyModel, books: Path, tmp_path: Path) -> None:
    write_checkpoint(random_model(tiny), tmp_path / "model", books, fused_experts=tiny.fused_experts)
    path = exported(tmp_path / "model", tmp_path / "f32.gguf")
    with pytest.raises(UnsupportedModelError, match="sees as well"):
        write_folder(path, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.fixture(scope="module")
def halves(books: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("halves") / "f16.gguf"
    run_export(ExportRequest(books, "gguf-f16", output=path))
    return path


def types_of(folder: Path) -> dict[str, str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 -- no mapping


def test_halves_stay_halves_and_hold_what_the_gguf_holds(books: Path, halves: Path, tmp_path: Path) -> None:
    found = write_folder(halves, tmp_path / "back")
    assert set(types_of(tmp_path / "back").values()) == {"F16"}
    assert found.dtype == json.loads((tmp_path / "back/config.json").read_text())["dtype"] == "float16"
    run_export(ExportRequest(tmp_path / "back", "gguf-f16", output=tmp_path / "again.gguf"))
    once, twice = read_header(halves), read_header(tmp_path / "again.gguf")
    assert {each.name: (each.type, each.shape) for each in once.tensors} == {
        each.name: (each.type, each.shape) for each in twice.tensors
    }
    before, after = (path.read_bytes() for path in (halves, tmp_path / "again.gguf"))
    assert before[once.data_start :] == after[twice.data_start :]
    for key, value in once.metadata.items():
        if key.startswith(("llama.", "tokenizer.ggml.")):
            assert twice.metadata[key].value == value.value, key


@pytest.mark.parametrize(("dtype", "stored"), [("auto", "F32"), ("float16", "F16"), ("bfloat16", "BF16")])
def test_quantised_weights_become_what_is_asked_for(dtype: str, stored: str, books: Path, tmp_path: Path) -> None:
    run_export(ExportRequest(books, "gguf-q4km", output=tmp_path / "q.gguf"))
    write_folder(tmp_path / "q.gguf", tmp_path / "back", dtype=dtype)
    assert set(types_of(tmp_path / "back").values()) == {stored}


def test_a_model_read_back_maps_to_the_keys_and_tensors_of_its_gguf(halves: Path, tmp_path: Path) -> None:
    mapped = map_checkpoint(read_back(halves, tmp_path))
    header = read_header(halves)
    own = {key: value.value for key, value in header.metadata.items() if not key.startswith("general.")}
    assert {key: mapped.metadata[key].value for key in own} == own
    assert {name: rows.shape for name, rows in mapped.tensors.items()} == {
        each.name: each.shape for each in header.tensors
    }


def test_weights_are_read_from_the_gguf_and_not_written(halves: Path, tmp_path: Path) -> None:
    checkpoint = read_back(halves, tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 1e6
    assert plan_folder(checkpoint.tensors).bytes > 1e7


def test_no_folder_is_left_of_what_fails_and_none_is_replaced(halves: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="not there yet"):
        write_folder(halves, tmp_path / "there")
    with pytest.raises(UsageError, match="does not exist"):
        write_folder(halves, tmp_path / "nowhere/back")
    with pytest.raises(UsageError, match="expected a GGUF, got a folder"):
        write_folder(tmp_path, tmp_path / "back")
    with pytest.raises(UsageError, match="--dtype"):
        write_folder(halves, tmp_path / "back", dtype="int3")

    def interrupted(label: str, total: int, unit: str = "B") -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(halves, tmp_path / "back", progress=interrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
