"""Heads of a GPT-2 in fewer dimensions against the cache of the same maps, run by stock llama.cpp."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from attention_models import tiny
from references.family_oracle import TableGELU, error_of, exported, llama_logits, token_ids, torch_logits
from references.tiny_checkpoints import TinyModel, random_model, write_checkpoint

from edgepack.edge.fit.memory import MemoryRequest, kv_layer_bytes
from edgepack.edge.fit.shape import read_shape
from edgepack.errors import GGUFError, UnsupportedModelError, UsageError
from edgepack.gguf.reader import read_header
from edgepack.quant.attention.eigen import EigenAttention
from edgepack.quant.attention.folded import fold_heads, write_folded

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.model import Checkpoint

GPT2 = TinyModel("gpt-2", "GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}, head="LMHeadModel")
TOKENS = torch.from_numpy(token_ids(160)).reshape(4, 40)


@pytest.fixture(scope="module")
def source(books: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("gpt2")
    model = random_model(GPT2)
    for block in model.transformer.h:
        block.mlp.act = TableGELU()
    return model, exported(write_checkpoint(model, folder / "source", books.path), folder / "source.gguf")


@pytest.mark.parametrize(
    ("groups", "rank", "joined", "tolerance"),
    [(4, 16, "head", 0.02), (4, 8, "head", 0.02), (4, 2, "head", 0.02), (1, 16, "layer", 0.02), (2, 16, None, None)],
)
def test_llama_cpp_says_what_the_maps_say(
    source: tuple[Any, Path], tmp_path: Path, groups: int, rank: int, joined: Any, tolerance: float | None
) -> None:
    model, path = source
    folded = fold_heads(model, TOKENS, groups=groups, rank=rank)
    write_folded(path, folded, tmp_path / "folded.gguf")
    found = llama_logits(tmp_path / "folded.gguf", token_ids())
    shape = read_shape(read_header(tmp_path / "folded.gguf"))
    held = sum(kv_layer_bytes(shape, layer, MemoryRequest(256)) for layer in shape.layers)
    assert held == 256 * folded.bytes_per_token()
    if joined is None:  # groups that `EigenAttention` has no name for
        assert folded.bytes_per_token() == 2 * 2 * 2 * 32
        return
    tokens = torch.from_numpy(token_ids())[None]
    settings: dict[str, Any] = {"key_rank": rank, "value_rank": rank, "joined": joined}
    with EigenAttention.fit(model, TOKENS, **settings) as eigen, torch.inference_mode():
        wanted = model(tokens, past_key_values=eigen.cache(), use_cache=True).logits[0].float().numpy()
    assert error_of(found, wanted) < tolerance


def test_the_whole_head_changes_nothing(source: tuple[Any, Path], tmp_path: Path) -> None:
    model, path = source
    write_folded(path, fold_heads(model, TOKENS, groups=4, rank=16), tmp_path / "folded.gguf")
    found, before = (llama_logits(each, token_ids()) for each in (tmp_path / "folded.gguf", path))
    assert error_of(found, before) < 0.02
    assert torch_logits(model, token_ids()).shape == found.shape


@pytest.mark.parametrize(
    ("groups", "rank", "words"),
    [(3, 8, "groups: expected a divisor of the 4 heads"), (4, 32, "at most the head size 16"), (4, 7, "divisor"),
     (4, 0, "got 0")],
)  # fmt: skip
def test_heads_that_the_graph_cannot_hold_are_refused(
    source: tuple[Any, Path], groups: int, rank: int, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        fold_heads(source[0], TOKENS, groups=groups, rank=rank)


def test_other_models_and_files_are_refused(source: tuple[Any, Path], books: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="folded in GPT2LMHeadModel"):
        fold_heads(tiny("llama"), TOKENS % 64, groups=2, rank=8)
    folded = fold_heads(source[0], TOKENS, groups=4, rank=8)
    with pytest.raises(GGUFError, match="expected a gpt2"):
        write_folded(exported(books.path, tmp_path / "books.gguf"), folded, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
