"""A cache of k dimensions against transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_models import some_tokens, tiny

from edgepack.errors import CalibrationError, UnsupportedModelError, UsageError
from edgepack.quant.attention.eigen import EigenAttention
from edgepack.quant.attention.families import layout_of

FULL = [
    *((family, rope, "head", 8) for family in ("llama", "qwen3", "mistral", "gpt2") for rope in ("before", "after")),
    ("phi3", "before", "head", 8),
    ("starcoder2", "before", "head", 8),
    ("llama", "pairs", "head", 8),
    ("llama", "before", "layer", 16),
    ("gpt2", "before", "layer", 32),
]


def fitted(model: Any, rank: int | None, **settings: Any) -> EigenAttention:
    settings = {"key_rank": rank, "value_rank": rank, "joined": "head", **settings}
    return EigenAttention.fit(model, some_tokens(), **settings)


def logits(model: Any, tokens: torch.Tensor, cache: Any = None, **named: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(tokens, past_key_values=cache, use_cache=cache is not None, **named).logits
    return found


@pytest.mark.parametrize(("family", "rope", "joined", "rank"), FULL)
@pytest.mark.parametrize("metric", ["plain", "scores"])
def test_at_full_rank_it_is_exact(family: str, rope: Any, joined: Any, rank: int, metric: Any) -> None:
    model = tiny(family)
    tokens = some_tokens(2, 30, seed=9)
    with fitted(model, rank, rope=rope, joined=joined, metric=metric) as eigen:
        found = logits(model, tokens, eigen.cache())
    wanted = logits(model, tokens)
    assert (found - wanted).abs().max() < 2e-4 * wanted.std()
    assert (found - wanted).abs().max() > 0, "nothing went through the maps"


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_token_by_token_gives_what_one_call_gives(family: str) -> None:
    model = tiny(family)
    tokens = some_tokens(2, 12, seed=9)
    with fitted(model, 3) as eigen:
        whole, cache = logits(model, tokens, eigen.cache()), eigen.cache()
        parts = [logits(model, tokens[:, place : place + 1], cache) for place in range(tokens.shape[1])]
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_generate_at_full_rank_says_what_the_model_says(family: str, settings: dict[str, Any]) -> None:
    model, tokens = tiny(family), some_tokens(2, 8, seed=2)
    settings = {"max_new_tokens": 12, "pad_token_id": 0, **settings}
    torch.manual_seed(0)
    wanted = model.generate(tokens, **settings)
    with fitted(model, 8) as eigen:
        torch.manual_seed(0)
        found = model.generate(tokens, past_key_values=eigen.cache(), **settings)
    assert torch.equal(found, wanted)


def test_padding_on_the_left_moves_positions_with_it() -> None:
    model, tokens = tiny("llama"), some_tokens(1, 10, seed=2)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), tokens], dim=1)
    mask = (torch.arange(14) >= 4).long()[None]
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with fitted(model, 4) as eigen:
        plain = logits(model, tokens, eigen.cache())
        moved = logits(model, padded, eigen.cache(), attention_mask=mask, position_ids=positions)
    assert torch.allclose(moved[:, 4:], plain, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "keys", "values", "rope", "joined"),
    [("llama", 3, 5, "before", "head"), ("llama", 4, 2, "pairs", "head"), ("llama", None, 3, "before", "head"),
     ("llama", 5, None, "after", "layer"), ("gpt2", 9, 9, "before", "layer"), ("gpt2", 1, None, "before", "head")],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_a_token_are_those_of_the_tensors_held(
    family: str, keys: int | None, values: int | None, rope: Any, joined: Any, dtype: torch.dtype
) -> None:
    model, tokens = tiny(family), some_tokens(3, 11, seed=2)
    with fitted(model, None, key_rank=keys, value_rank=values, rope=rope, joined=joined) as eigen:
        cache = eigen.cache(dtype)
        logits(model, tokens, cache)
        assert cache.held_bytes == tokens.numel() * eigen.bytes_per_token(dtype.itemsize)
        assert {layer.keys.dtype for layer in cache.layers} == {dtype}
        cache.crop(-4)
        assert cache.held_bytes == 3 * 7 * eigen.bytes_per_token(dtype.itemsize)
        cache.reset()
        assert cache.held_bytes == 0


def test_a_cropped_cache_goes_on_as_if_the_rest_had_never_come() -> None:
    model, tokens = tiny("llama"), some_tokens(1, 12, seed=2)
    with fitted(model, 3) as eigen:
        cache = eigen.cache()
        logits(model, tokens, cache)
        cache.crop(-5)
        found = logits(model, tokens[:, 7:], cache)
        assert torch.allclose(found, logits(model, tokens, eigen.cache())[:, 7:], atol=1e-4)


def test_more_dimensions_are_never_worse_in_their_own_metric() -> None:
    model = tiny("llama")
    errors = []
    for rank in range(1, 9):
        with fitted(model, rank, metric="plain") as eigen:
            moments, maps = eigen.moments[0].keys, eigen.keys[0]  # type: ignore[index]
            rest = (torch.eye(8) - maps.down @ maps.up).detach().double()
            errors.append(float((rest.transpose(-1, -2) @ moments.covariance @ rest).diagonal(dim1=1, dim2=2).sum()))
    assert errors == sorted(errors, reverse=True)
    values = torch.linalg.eigvalsh(moments.covariance).flip(-1)
    assert errors[2] == pytest.approx(float(values[:, 3:].sum()), rel=1e-4), "not the principal components"


def test_scores_lose_less_under_their_metric_than_with_plain_components() -> None:
    model = tiny("llama", num_hidden_layers=1)
    losses = {}
    for metric in ("plain", "scores"):
        with fitted(model, 3, metric=metric) as eigen:
            maps, moments = eigen.keys[0], eigen.moments[0]  # type: ignore[index]
            rest = (torch.eye(8) - maps.down @ maps.up).detach().double()
            error = rest.transpose(-1, -2) @ moments.keys.covariance @ rest
            losses[metric] = float((error * moments.key_metric).sum())
    assert losses["scores"] < losses["plain"]


def test_the_model_is_left_as_it_was() -> None:
    model = tiny("llama")
    with fitted(model, 2) as eigen:
        logits(model, some_tokens(), eigen.cache())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_cache_of_another_model_is_refused() -> None:
    with fitted(tiny("llama"), 2) as eigen, pytest.raises(UsageError, match="its own model"):
        logits(tiny("llama"), some_tokens(2, 5), eigen.cache())


@pytest.mark.parametrize("family", ["mamba", "bloom"])
def test_models_without_known_attention_are_refused_in_a_line(family: str) -> None:
    words = {"mamba": "with attention, got mamba", "bloom": "not known here"}[family]
    with pytest.raises(UnsupportedModelError, match=words) as refusal:
        layout_of(tiny(family))
    assert "\n" not in str(refusal.value)


def test_rope_that_changes_with_the_length_is_refused() -> None:
    model = tiny("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(UnsupportedModelError, match="length of the text"):
        layout_of(model)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"key_rank": 9}, "expected 1 to 8.*got 9"), ({"value_rank": 0}, "expected 1 to 8.*got 0"),
     ({"key_rank": 17, "joined": "layer"}, "1 to 16"), ({"key_rank": None, "value_rank": None}, "got none"),
     ({"key_rank": 3, "rope": "pairs"}, "even"), ({"rope": "never"}, "rope: expected one of before, after, pairs")],
)  # fmt: skip
def test_what_cannot_be_projected_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fitted(tiny("llama"), 2, **settings)


def test_pairs_want_rope_over_whole_heads() -> None:
    for family in ("phi3", "gpt2"):
        with pytest.raises(UnsupportedModelError, match="whole heads"):
            fitted(tiny(family), 2, rope="pairs")


def test_no_tokens_are_refused() -> None:
    with pytest.raises(CalibrationError, match="expected tokens"):
        EigenAttention.fit(tiny("llama"), some_tokens(0, 5), key_rank=2, value_rank=2)
