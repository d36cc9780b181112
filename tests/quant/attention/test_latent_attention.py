"""Attention through a latent against what it was made of, in transformers and in llama.cpp."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from attention_models import some_tokens, tiny
from references.family_oracle import error_of, exported, llama_logits, token_ids
from references.tiny_checkpoints import TinyModel, random_model, write_checkpoint

from edgepack.edge.fit.memory import MemoryRequest, kv_layer_bytes
from edgepack.edge.fit.shape import read_shape
from edgepack.errors import CalibrationError, UnsupportedModelError, UsageError
from edgepack.gguf.reader import read_header
from edgepack.quant.attention.judging import answers, judge
from edgepack.quant.attention.latent import LatentSettings, latent_bytes_per_token, to_latent_attention
from edgepack.quant.attention.latent_checkpoint import write_latent_checkpoint
from edgepack.quant.attention.shared_rope import causal_distances, keep_rope, share_rope
from edgepack.quant.attention.training import TrainingSettings

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.model import Checkpoint

SMALL = {"rms_norm_eps": 1e-6, "num_key_value_heads": 1, "num_hidden_layers": 2, "head_dim": 16}


def apart(model: Any, other: Any) -> float:
    """The largest difference of logits in standard deviations."""
    tokens = some_tokens(1, 30, seed=9)[0]
    with torch.inference_mode():
        wanted, found = answers(model)(tokens), answers(other)(tokens)
    return float((wanted - found).abs().max() / wanted.std())


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_at_full_rank_with_whole_rope_it_is_exact(kv_heads: int) -> None:
    model = tiny("llama", num_key_value_heads=kv_heads)
    made = to_latent_attention(model, some_tokens(), LatentSettings(32, rope="whole"))
    assert apart(model, made) < 3e-4


def test_at_full_rank_one_head_of_keys_needs_no_more_than_llama_cpp_has() -> None:
    model = tiny("llama", num_key_value_heads=1)
    assert apart(model, to_latent_attention(model, some_tokens(), LatentSettings(32))) < 3e-4


def test_the_latent_checkpoint_runs_in_llama_cpp_as_in_transformers(books: Checkpoint, tmp_path: Path) -> None:
    folder = write_checkpoint(random_model(TinyModel("mqa", "Llama", SMALL)), tmp_path / "source", books.path)
    tokens = torch.from_numpy(token_ids(120)).reshape(4, 30)
    full = write_latent_checkpoint(folder, tmp_path / "full", tokens, LatentSettings(64))
    assert full.source_bytes_per_token == 2 * 2 * 2 * 16
    source = llama_logits(exported(folder, tmp_path / "source.gguf"), token_ids())
    path = exported(full.folder, tmp_path / "full.gguf")
    assert error_of(llama_logits(path, token_ids()), source) < 1e-3
    shape = read_shape(read_header(path))
    held = sum(kv_layer_bytes(shape, layer, MemoryRequest(256)) for layer in shape.layers)
    assert held == 256 * full.bytes_per_token


@pytest.mark.parametrize(("rank", "fold"), [(12, 1), (24, 2)])
def test_fewer_dimensions_change_little_and_training_makes_up_for_some(rank: int, fold: int) -> None:
    model, tokens = tiny("llama").requires_grad_(False), some_tokens(6, 40)
    made = to_latent_attention(model, tokens, LatentSettings(rank, fold))
    assert latent_bytes_per_token(made.config) == 2 * 2 * (rank + 8 // fold)
    found = judge(answers(model), answers(made), some_tokens(2, 30, seed=9))
    nothing = judge(answers(model), lambda tokens: torch.zeros(len(tokens), 64), some_tokens(2, 30, seed=9))
    assert found.kl < 0.6 * nothing.kl


def test_a_trained_checkpoint_is_written_whole(books: Checkpoint, tmp_path: Path) -> None:
    model = random_model(TinyModel("gqa", "Llama", {**SMALL, "num_key_value_heads": 2}))
    folder = write_checkpoint(model, tmp_path / "source", books.path)
    tokens = torch.from_numpy(token_ids(120)).reshape(4, 30)
    settings = TrainingSettings(steps=6, rate=3e-3)
    found = write_latent_checkpoint(folder, tmp_path / "out", tokens, LatentSettings(24), settings)
    assert found.trained is not None
    assert found.trained.after <= found.trained.before
    assert (found.folder / "tokenizer.json").is_file()
    assert np.isfinite(llama_logits(exported(found.folder, tmp_path / "out.gguf"), token_ids())).all()
    with pytest.raises(UsageError, match="empty or not there"):
        write_latent_checkpoint(folder, tmp_path / "out", tokens, LatentSettings(24))


def test_the_shared_key_turns_as_the_keys_that_it_is_made_of() -> None:
    generator = torch.Generator().manual_seed(3)
    keys = torch.randn(500, 16, generator=generator).double() @ torch.randn(16, 16, generator=generator).double()
    asked = torch.eye(8).double().expand(2, 8, 8)
    angles = torch.tensor([1.0, 0.3, 0.1, 0.01]).double()
    found = share_rope(keys.T @ keys, asked, angles, causal_distances(50))

    def turned(states: torch.Tensor, position: int) -> torch.Tensor:
        real, imaginary = states.reshape(-1, 2, 2, 4).unbind(2)
        both = torch.complex(real, imaginary) * torch.exp(1j * position * angles)
        return torch.stack([both.real, both.imag], dim=2).reshape(-1, 16)

    def turned_pairs(states: torch.Tensor, position: int) -> torch.Tensor:
        both = torch.view_as_complex(states.reshape(-1, 4, 2).contiguous()) * torch.exp(1j * position * angles)
        return torch.view_as_real(both).reshape(-1, 8)

    assert torch.allclose(turned(keys, 7) @ found.down.T, turned_pairs(keys @ found.down.T, 7))
    # what is shared and what is left are all of a score where nothing has turned yet
    now = share_rope(keys.T @ keys, asked, angles, torch.ones(1))
    query = torch.randn(8, generator=generator).double()
    for head in range(2):
        whole = keys[:, head * 8 : head * 8 + 8] @ query
        rest = (keys @ now.rest.T)[:, head * 8 : head * 8 + 8] @ query
        assert torch.allclose(keys @ now.down.T @ (now.queries[head] @ query) + rest, whole)
    kept = keep_rope(2, 8)
    assert kept.dimensions == 16
    assert not kept.rest.any()


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"rank": 33}, "expected 2 to 32.*got 33"), ({"rank": 1}, "got 1"), ({"rank": 8, "fold": 3}, "fold: expected"),
     ({"rank": 8, "fold": 0}, "fold: expected"), ({"rank": 8, "rope": "some"}, "shared or whole"),
     ({"rank": 8, "balance": 0.0}, "balance")],
)  # fmt: skip
def test_shapes_that_there_are_not_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        to_latent_attention(tiny("llama"), some_tokens(), LatentSettings(**settings))


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [("qwen3", {}, "made of LlamaForCausalLM"), ("mistral", {}, "without a window"), ("mamba", {}, "with attention"),
     ("llama", {"attention_bias": True}, "no biases"),
     ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "plain rope")],
)  # fmt: skip
def test_other_models_are_refused_in_a_line(family: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words) as refusal:
        to_latent_attention(tiny(family, **settings), some_tokens(), LatentSettings(8))
    assert "\n" not in str(refusal.value)


def test_too_little_text_is_refused() -> None:
    for tokens in (some_tokens(1, 4), some_tokens(0, 4)):
        with pytest.raises(CalibrationError, match="latent attention: expected"):
            to_latent_attention(tiny("llama"), tokens, LatentSettings(8))
