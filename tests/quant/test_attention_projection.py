"""Keys and values in fewer dimensions: all of them lose nothing, fewer lose what is said, and nothing else changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from edgepack.errors import UnsupportedModelError, UsageError
from edgepack.quant.calibration.attention_moments import LayerMoments, attention_moments
from edgepack.quant.calibration.attention_projection import Basis, Part, ProjectedCache, layer_bases
from edgepack.quant.calibration.attention_watch import AttentionInputs, LookingVisitor, watched_attention

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.model import Checkpoint

WIDTH = 16  # of the tiny models' keys, both heads together


def bases_of(
    checkpoint: Checkpoint, tokens: NDArray[np.int64], *, centred: bool = True
) -> dict[int, dict[Part, Basis]]:
    found: dict[int, dict[Part, Basis]] = {}

    def take(layer: LayerMoments) -> None:
        found[layer.layer] = layer_bases(layer, centred=centred)

    attention_moments(checkpoint, tokens, take)
    return found


def logits(model: Any, tokens: NDArray[np.int64], cache: ProjectedCache | None = None) -> torch.Tensor:
    with torch.no_grad():
        if cache is None:
            return model(torch.from_numpy(tokens)).logits
        with watched_attention(model, cache):
            return model(torch.from_numpy(tokens)).logits


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("parts", [("k_before", "v"), ("k", "v"), ("v",)])
def test_all_dimensions_lose_nothing_and_fewer_lose_more(
    family: str, parts: tuple[Part, ...], tiny: Any, tokens: NDArray[np.int64]
) -> None:
    checkpoint, model = tiny(family)
    bases = bases_of(checkpoint, tokens)
    whole = logits(model, tokens)
    torch.testing.assert_close(logits(model, tokens, ProjectedCache(bases, WIDTH, parts)), whole, rtol=1e-3, atol=1e-3)
    errors = [
        float((logits(model, tokens, ProjectedCache(bases, k, parts)) - whole).square().mean()) for k in (12, 6, 1)
    ]
    assert errors[0] < errors[1] < errors[2]
    torch.testing.assert_close(logits(model, tokens), whole)  # nothing stays changed


def test_what_is_lost_of_values_is_the_energy_of_the_directions_left_out(tiny: Any, tokens: NDArray[np.int64]) -> None:
    checkpoint, model = tiny("llama")
    bases = bases_of(checkpoint, tokens)
    values: list[torch.Tensor] = []

    class First(LookingVisitor):
        def look(self, inputs: AttentionInputs) -> None:
            if inputs.layer == 0:
                values.append(inputs.v.transpose(1, 2).reshape(-1, WIDTH).double())

    with torch.no_grad(), watched_attention(model, First()):
        model(torch.from_numpy(tokens))
    rows, basis = values[0].numpy(), bases[0]["v"]
    for k in (1, 5, 9):
        kept = basis.directions[:, :k].astype(np.float64)
        back = (rows - basis.mean) @ kept @ kept.T + basis.mean
        lost = ((rows - back) ** 2).sum() / ((rows - rows.mean(0)) ** 2).sum()
        assert lost == pytest.approx(1 - basis.kept(k), rel=1e-3)


def test_without_rotation_keys_are_projected_where_attention_meets_them(tiny: Any, tokens: NDArray[np.int64]) -> None:
    checkpoint, model = tiny("gpt2")
    bases = bases_of(checkpoint, tokens)
    before = logits(model, tokens, ProjectedCache(bases, 3, ("k_before",)))
    torch.testing.assert_close(before, logits(model, tokens, ProjectedCache(bases, 3, ("k",))))
    assert not torch.allclose(before, logits(model, tokens))


def test_more_dimensions_than_a_layer_has_are_refused_with_both_numbers(tiny: Any, tokens: NDArray[np.int64]) -> None:
    bases = bases_of(tiny("llama")[0], tokens)
    with pytest.raises(UsageError, match=f"{WIDTH + 1}, but the keys of layer 0 have {WIDTH}"):
        ProjectedCache(bases, WIDTH + 1, ("k",))
    with pytest.raises(UsageError, match="at least 1, got 0"):
        ProjectedCache(bases, 0, ("v",))


def test_a_family_that_turns_a_part_of_each_head_is_refused_before_rotation(
    tiny: Any, tokens: NDArray[np.int64]
) -> None:
    checkpoint, model = tiny("phi")
    cache = ProjectedCache(bases_of(checkpoint, tokens), 4, ("k_before",))
    with pytest.raises(UnsupportedModelError, match="cannot be projected before"):
        logits(model, tokens, cache)
    with pytest.raises(UnsupportedModelError, match="does not show 'k_before'"):
        ProjectedCache({0: {}}, 4, ("k_before",))
