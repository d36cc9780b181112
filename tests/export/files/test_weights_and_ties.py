"""Which weight file decides, and whether the head is the embedding: as transformers decides, and said in a line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny_llama import EMBEDDING, HEAD, agrees, change

from edgepack.errors import CheckpointError
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.config import ModelConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Tiny = Callable[..., Path]

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def zeros(folder: Path) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in load_file(folder / SAFE).items()}


def write_index(folder: Path, name: str, weight_map: dict[str, str]) -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def put_stale(folder: Path, kind: str) -> None:
    """Zeros in every form that transformers looks for after model.safetensors."""
    old = zeros(folder)
    if kind == TORCH:
        torch.save(old, folder / TORCH)
    elif kind == TORCH_INDEX:
        torch.save(old, folder / "pytorch_model-00001-of-00001.bin")
        write_index(folder, TORCH_INDEX, dict.fromkeys(old, "pytorch_model-00001-of-00001.bin"))
    else:
        save_file(old, folder / "model-00001-of-00001.safetensors")
        write_index(folder, SAFE_INDEX, dict.fromkeys(old, "model-00001-of-00001.safetensors"))


@pytest.mark.parametrize("kind", [SAFE_INDEX, TORCH, TORCH_INDEX])
def test_model_safetensors_decides_over_everything_stale(tiny: Tiny, kind: str) -> None:
    folder = tiny()
    put_stale(folder, kind)
    assert any(kind in note and "is not" in note for note in agrees(folder).notes)


def test_a_stale_index_whose_shards_are_gone_is_no_error(tiny: Tiny) -> None:
    folder = tiny()
    put_stale(folder, SAFE_INDEX)
    (folder / "model-00001-of-00001.safetensors").unlink()
    agrees(folder)


@pytest.mark.parametrize("kind", [TORCH, TORCH_INDEX])
def test_an_index_of_safetensors_decides_over_torch_files(tiny: Tiny, kind: str) -> None:
    folder = tiny()
    put_stale(folder, kind)
    whole = load_file(folder / SAFE)
    (folder / SAFE).rename(folder / "model-00001-of-00001.safetensors")
    write_index(folder, SAFE_INDEX, dict.fromkeys(whole, "model-00001-of-00001.safetensors"))
    agrees(folder)


def test_the_file_that_the_configuration_names_decides(tiny: Tiny) -> None:
    folder = tiny()
    (folder / SAFE).rename(folder / "other.safetensors")
    save_file({name: t * 0 for name, t in load_file(folder / "other.safetensors").items()}, folder / SAFE)
    change(folder / "config.json", transformers_weights="other.safetensors")
    agrees(folder)
    change(folder / "config.json", transformers_weights="../other.safetensors")
    with pytest.raises(CheckpointError, match="transformers_weights"):
        open_checkpoint(folder)


def shards(folder: Path, move: str, *, listed: bool = True, wrong: bool = False, twice: bool = False) -> None:
    """Two shards, tensor `move` in the second."""
    whole = load_file(folder / SAFE)
    (folder / SAFE).unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    first = {name: tensor for name, tensor in whole.items() if name != move}
    save_file(first | ({move: whole[move] * 0} if twice else {}), folder / names[0])
    save_file({move: whole[move], "unused.inv_freq": torch.ones(2)}, folder / names[1])
    placed = dict.fromkeys(first, names[0]) | {"unused.inv_freq": names[1]}
    if listed:
        placed[move] = names[0] if wrong else names[1]
    write_index(folder, SAFE_INDEX, placed)


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"wrong": True}, "'s is taken"),
        ({"listed": False}, "not in model.safetensors.index.json"),
        ({"twice": True}, None),
    ],
)
def test_a_tensor_is_where_it_is_not_where_the_index_says(tiny: Tiny, options: dict, needle: str | None) -> None:
    folder = tiny()
    expected = load_file(folder / SAFE)
    shards(folder, "model.norm.weight", **options)
    checkpoint = open_checkpoint(folder)
    for name, tensor in expected.items():
        rows = checkpoint.tensors.read_rows(name, 0, checkpoint.tensors.specs[name].rows)
        np.testing.assert_array_equal(rows.reshape(tensor.shape), tensor.numpy())
    assert needle is None or any(needle in note for note in checkpoint.notes)


def test_a_head_of_its_own_stays_although_the_configuration_ties(tiny: Tiny) -> None:
    folder = tiny(tie_word_embeddings=False)
    change(folder / "config.json", tie_word_embeddings=True)
    checkpoint = agrees(folder)
    assert checkpoint.config["tie_word_embeddings"] is False
    assert any("kept apart" in note for note in checkpoint.notes)


def test_an_equal_head_in_the_file_is_still_the_embedding(tiny: Tiny) -> None:
    folder = tiny(tie_word_embeddings=True)
    tensors = load_file(folder / SAFE)
    save_file({**tensors, HEAD: tensors[EMBEDDING].clone()}, folder / SAFE)
    checkpoint = agrees(folder)
    assert checkpoint.config["tie_word_embeddings"] is True
    assert not checkpoint.notes


def test_the_one_matrix_of_a_tied_model_may_be_the_heads(tiny: Tiny) -> None:
    folder = tiny(tie_word_embeddings=True)
    tensors = load_file(folder / SAFE)
    tensors[HEAD] = tensors.pop(EMBEDDING)
    save_file(tensors, folder / SAFE, metadata={"format": "pt"})
    checkpoint = agrees(folder)
    assert any("is 'model.embed_tokens.weight' too" in note for note in checkpoint.notes)


def test_a_torch_file_with_both_names_of_one_matrix_is_tied(tiny: Tiny) -> None:
    folder = tiny(tie_word_embeddings=True)
    tensors = load_file(folder / SAFE)
    (folder / SAFE).unlink()
    torch.save({**tensors, HEAD: tensors[EMBEDDING]}, folder / TORCH)
    assert agrees(folder).config["tie_word_embeddings"] is True


@pytest.mark.parametrize(("whole", "text", "tied"), [(False, True, False), (True, False, True), (None, True, True)])
def test_the_whole_model_decides_over_its_text_part(whole: bool | None, text: bool, tied: bool) -> None:
    values = {"tie_word_embeddings": whole, "text_config": {"tie_word_embeddings": text}}
    assert ModelConfig(values).of_text().tied is tied
