"""Layers that predict further tokens stand where llama.cpp drafts with them, and change nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import llama_cpp
import pytest
import torch
from references.family_oracle import (
    assert_equal_logits,
    assert_equal_types,
    exported,
    llama_logits,
    token_ids,
    torch_logits,
)
from references.hybrid_models import HYBRIDS
from references.tiny_checkpoints import random_model, write_checkpoint
from safetensors.torch import load_file, save_file

from edgepack.edge.llama.log import runtime_log
from edgepack.errors import UnsupportedModelError
from edgepack.export.mapped_model import open_model

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("qwen-3-next", "qwen-3.5", "qwen-3.5-with-eyes", "qwen-3.5-moe")
ATTENDING = 3  # the layer of the tiny models that a layer of prediction is like


def add_prediction(folder: Path, count: int = 1) -> None:
    """Layers as published: of attention, under `mtp.`, with the trunk's experts or feed-forward network."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    like = {name.partition(f"layers.{ATTENDING}.")[2]: each for name, each in tensors.items()}
    more = {
        f"mtp.layers.{number}.{name}": torch.randn_like(tensor) * 0.1
        for number in range(count)
        for name, tensor in like.items()
        if name
    }
    more |= {f"mtp.{name}.weight": torch.randn(64) for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    save_file(tensors | more | {"mtp.fc.weight": torch.randn(64, 128)}, path)


def add_nemotron_prediction(folder: Path) -> None:
    """As published: attention in `mtp.layers.0`, experts in `mtp.layers.1`."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    parts = {"backbone.layers.2.mixer.": "mtp.layers.0.mixer.", "backbone.layers.3.mixer.": "mtp.layers.1.mixer."}
    more = {
        name.replace(ours, theirs): tensor + 0.1
        for name, tensor in tensors.items()
        for ours, theirs in parts.items()
        if name.startswith(ours)
    }
    norms = ("0.enorm", "0.hnorm", "0.norm", "1.norm", "1.final_layernorm")
    more |= {f"mtp.layers.{name}.weight": torch.randn(64) for name in norms}
    save_file(tensors | more | {"mtp.layers.0.eh_proj.weight": torch.randn(64, 128)}, path)


def loads_for_drafting(path: Path) -> bool:
    """Whether llama.cpp finds every tensor that drafting needs, each of its shape."""
    runtime_log()
    params = llama_cpp.llama_model_default_params()
    params.load_mtp = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        return False
    found = llama_cpp.llama_model_n_layer_nextn(model) == 1
    llama_cpp.llama_model_free(model)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_layers_of_prediction_are_kept_and_change_nothing(name: str, books: Path, tmp_path: Path) -> None:
    tiny = next(each for each in HYBRIDS if each.name == name)
    model, ids = random_model(tiny), token_ids()
    folder = write_checkpoint(model, tmp_path / "model", books)
    plain = set(open_model(folder).tensors)
    add_prediction(folder)
    path = exported(folder, tmp_path / "model.gguf")
    more = set(open_model(folder).tensors) - plain
    assert {each for each in more if "nextn" in each} == {
        f"blk.4.nextn.{part}.weight" for part in ("eh_proj", "enorm", "hnorm", "shared_head_norm")
    }
    assert {each.replace("blk.4.", "blk.3.") for each in more if "nextn" not in each} == {
        each for each in plain if each.startswith("blk.3.")
    }
    assert loads_for_drafting(path)
    assert_equal_logits(llama_logits(path, ids), torch_logits(model, ids), tiny.tolerance)
    assert_equal_types(folder, path)


def test_more_layers_of_prediction_than_the_graph_has_are_refused(books: Path, tmp_path: Path) -> None:
    tiny = next(each for each in HYBRIDS if each.name == "qwen-3.5")
    folder = write_checkpoint(random_model(tiny), tmp_path / "model", books)
    add_prediction(folder, 2)
    with pytest.raises(UnsupportedModelError, match="2 layers of prediction: llama.cpp holds at most 1"):
        open_model(folder)


def test_nemotrons_layer_of_prediction_is_kept_and_changes_nothing(books: Path, tmp_path: Path) -> None:
    tiny = next(each for each in HYBRIDS if each.name == "nemotron-3")
    model, ids = random_model(tiny), token_ids()
    folder = write_checkpoint(model, tmp_path / "model", books)
    plain = set(open_model(folder).tensors)
    add_nemotron_prediction(folder)
    path = exported(folder, tmp_path / "model.gguf")
    more = set(open_model(folder).tensors) - plain
    assert {each.split(".")[2] for each in more} >= {"nextn", "attn_q", "ffn_up_exps", "post_attention_norm"}
    assert all(each.startswith("blk.4.") for each in more)
    assert loads_for_drafting(path)
    assert_equal_logits(llama_logits(path, ids), torch_logits(model, ids), tiny.tolerance)
    assert_equal_types(folder, path)
