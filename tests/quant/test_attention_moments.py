"""Moments and spectra of attention against the cache that transformers fills, and numpy's own decompositions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from edgepack.errors import UnsupportedModelError
from edgepack.quant.calibration.attention_moments import LayerMoments, SecondMoments, attention_moments
from edgepack.quant.calibration.attention_spectra import layer_spectra, spectrum, viewed
from edgepack.quant.calibration.attention_watch import LookingVisitor, watched_attention

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.model import Checkpoint
    from edgepack.quant.calibration.attention_watch import AttentionInputs

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt_neox", "gpt2", "phi"]


def moments_of(checkpoint: Checkpoint, tokens: NDArray[np.int64], batch: int = 2) -> list[LayerMoments]:
    found: list[LayerMoments] = []
    assert attention_moments(checkpoint, tokens, found.append, batch=batch) == len(found)
    return found


def cached(model: Any, tokens: NDArray[np.int64]) -> list[dict[str, np.ndarray]]:
    """What transformers' own cache keeps: vectors [sequences · length, kv heads · head] of every layer."""
    with torch.no_grad():
        cache = DynamicCache()  # without a configuration it keeps what is beyond a window too
        model(torch.from_numpy(tokens), use_cache=True, past_key_values=cache)
    return [
        {
            name: tensor.transpose(1, 2).reshape(tokens.size, -1).double().numpy()
            for name, tensor in (("k", layer.keys), ("v", layer.values))
        }
        for layer in cache.layers
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_of_keys_and_values_are_those_of_transformers_own_cache(
    family: str, tiny: Any, tokens: NDArray[np.int64]
) -> None:
    checkpoint, model = tiny(family)
    found = moments_of(checkpoint, tokens)
    expected = cached(model, tokens)
    assert len(found) == len(expected)
    for layer, kept in zip(found, expected, strict=True):
        for kind in ("k", "v"):
            rows = kept[kind]
            moments = layer.moments[kind]  # type: ignore[index]
            assert moments.count == len(rows)
            np.testing.assert_allclose(moments.total, rows.sum(0), rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(moments.outer, rows.T @ rows, rtol=1e-4, atol=1e-4)


def test_the_batch_changes_no_moment(tiny: Any, tokens: NDArray[np.int64]) -> None:
    checkpoint, _model = tiny("llama")
    for one, other in zip(moments_of(checkpoint, tokens, 1), moments_of(checkpoint, tokens, 8), strict=True):
        for kind, moments in one.moments.items():
            np.testing.assert_allclose(moments.outer, other.moments[kind].outer, rtol=1e-5, atol=1e-5)


def test_every_view_has_the_spectrum_that_numpy_finds_in_the_vectors_themselves(
    tiny: Any, tokens: NDArray[np.int64]
) -> None:
    checkpoint, model = tiny("llama")
    length = tokens.shape[1]
    for layer, kept in zip(moments_of(checkpoint, tokens), cached(model, tokens), strict=True):
        for kind in ("k", "v"):
            rows = kept[kind]
            later = np.delete(rows, slice(0, None, length), axis=0)
            for suffix, some in (("", rows), ("_first_dropped", later)):
                centred = some - some.mean(0)
                views = {"raw": some, "centred": centred, "standardised": centred / centred.std(0)}
                for view, vectors in views.items():
                    got = spectrum(viewed(layer.moments[kind], view + suffix)).values  # type: ignore[index, arg-type]
                    singular = np.linalg.svd(vectors / np.sqrt(len(vectors)), compute_uv=False)
                    np.testing.assert_allclose(got[: len(singular)], singular**2, rtol=1e-3, atol=1e-5 * got[0])


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gpt_neox", "phi"])
def test_rotation_keeps_the_energy_of_keys_and_queries_but_not_their_directions(
    family: str, tiny: Any, tokens: NDArray[np.int64]
) -> None:
    for layer in moments_of(tiny(family)[0], tokens):
        assert layer.rotated
        for before, after in (("k_before", "k"), ("q_before", "q")):
            ahead, behind = layer.moments[before].outer, layer.moments[after].outer  # type: ignore[index]
            assert np.trace(ahead) == pytest.approx(np.trace(behind), rel=1e-5)
            assert not np.allclose(ahead, behind, rtol=1e-3)


def test_keys_before_rotation_are_the_projections_own_outputs(tiny: Any, tokens: NDArray[np.int64]) -> None:
    checkpoint, model = tiny("llama")
    seen: list[np.ndarray] = []
    hook = model.model.layers[1].self_attn.k_proj.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.reshape(-1, output.shape[-1]).double().numpy())
    )
    with torch.no_grad():
        model(torch.from_numpy(tokens))
    hook.remove()
    np.testing.assert_allclose(
        moments_of(checkpoint, tokens)[1].moments["k_before"].outer, seen[0].T @ seen[0], rtol=1e-4, atol=1e-5
    )


def test_without_rotation_before_and_after_are_one(tiny: Any, tokens: NDArray[np.int64]) -> None:
    for layer in moments_of(tiny("gpt2")[0], tokens):
        assert not layer.rotated
        np.testing.assert_array_equal(layer.moments["k_before"].outer, layer.moments["k"].outer)


def test_queries_of_a_group_are_vectors_of_their_keys_head(tiny: Any, tokens: NDArray[np.int64]) -> None:
    for layer in moments_of(tiny("llama")[0], tokens):
        group = layer.query_heads // layer.kv_heads
        assert layer.moments["q"].count == group * tokens.size
        assert layer.moments["q"].width == layer.moments["k"].width
        assert len(layer.moments["q"].first) == group * len(tokens)


def test_heads_alone_are_blocks_of_all_heads_together(tiny: Any, tokens: NDArray[np.int64]) -> None:
    spectra = layer_spectra(moments_of(tiny("qwen3")[0], tokens)[0])
    for both in spectra.kinds.values():
        together = both.joint["raw"].values.sum()
        assert sum(head["raw"].values.sum() for head in both.heads) == pytest.approx(together)


def test_spectra_of_known_vectors() -> None:
    moments = SecondMoments(1, 8, np.zeros(4), np.diag([7.2, 0.4, 0.4, 0.0]), np.zeros((0, 4), np.float32))
    found = spectrum(moments.raw)
    assert [found.dimensions(share) for share in (0.9, 0.95, 0.99)] == [1, 2, 3]
    assert found.kept(1) == pytest.approx(0.9)
    assert 1 < found.effective_rank < 3
    assert spectrum(np.eye(5)).effective_rank == pytest.approx(5)
    nothing = spectrum(np.zeros((3, 3)))
    assert (nothing.effective_rank, nothing.dimensions(0.9), nothing.kept(1)) == (0, 0, 1)


@pytest.mark.parametrize("family", ["falcon", "bloom"])
def test_attention_that_cannot_be_watched_is_refused_before_any_weight_is_read(
    family: str, tiny: Any, tokens: NDArray[np.int64]
) -> None:
    with pytest.raises(UnsupportedModelError, match="cannot be watched"):
        moments_of(tiny(family)[0], tokens)


def test_transformers_is_left_as_it_was_after_watching(tiny: Any, tokens: NDArray[np.int64]) -> None:
    import transformers.models.llama.modeling_llama as home

    class Failing(LookingVisitor):
        def look(self, _inputs: AttentionInputs) -> None:
            raise ZeroDivisionError

    _checkpoint, model = tiny("llama")
    rotation, known = home.apply_rotary_pos_emb, dict(home.ALL_ATTENTION_FUNCTIONS)
    with pytest.raises(ZeroDivisionError), watched_attention(model, Failing()):
        model(torch.from_numpy(tokens))
    assert home.apply_rotary_pos_emb is rotation
    assert dict(home.ALL_ATTENTION_FUNCTIONS) == known
