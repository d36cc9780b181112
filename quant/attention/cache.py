"""A transformers cache that holds keys and values in k dimensions.

Attention itself stays transformers': a layer hands its keys over, gets all of them back as the maps up give them, and
knows nothing of it. What the maps are is left to `projector`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.quant.attention.projector import LearnableProjector
    from edgepack.quant.attention.rotation import PositionTrack, Turn


class ProjectedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, [batch, groups, tokens, k] each; every token that came is kept.

    Args:
        keys: their maps; None keeps keys whole.
        values: likewise.
        dtype: what is stored; None for the type of the model's own.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(
        self,
        keys: LearnableProjector | None,
        values: LearnableProjector | None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._of_keys, self._of_values, self._stored = keys, values, dtype

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *turns: Turn, **_named: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new states; all there are, as the maps give them back.

        Args:
            key_states: [batch, heads, new tokens, head], turned.
            value_states: likewise.
            turns: none where keys are stored as they come; else that of the new tokens and that of all.

        Returns:
            Keys and values [batch, heads, tokens, head], in the types of the new ones.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        fresh = turns[0].undo(key_states) if turns else key_states
        self.keys = _grown(self.keys, _down(self._of_keys, fresh), self._stored)
        self.values = _grown(self.values, _down(self._of_values, value_states), self._stored)
        keys = _up(self._of_keys, self.keys.to(key_states.dtype), key_states.shape[1])
        values = _up(self._of_values, self.values.to(value_states.dtype), value_states.shape[1])
        return (turns[1].apply(keys) if turns else keys), values


def _down(projector: LearnableProjector | None, states: torch.Tensor) -> torch.Tensor:
    return states if projector is None else projector.compress(states)


def _up(projector: LearnableProjector | None, stored: torch.Tensor, heads: int) -> torch.Tensor:
    return stored if projector is None else projector.expand(stored, heads)


def _grown(held: torch.Tensor, fresh: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    fresh = fresh if dtype is None else fresh.to(dtype)
    return fresh if not held.numel() else torch.cat([held, fresh], dim=-2)


class ProjectedCache(Cache):  # type: ignore[misc]
    """Of a whole model; give it to `generate` or to a call as `past_key_values`.

    Where rope is undone before keys are stored, the positions of all tokens are held too: 4 bytes a token, once for
    all layers. Rope's cosines and sines of all tokens are made anew in each call, and are not counted as held.

    Args:
        layers: one a layer of the model.
        track: tells positions; None where keys are stored as they come.
    """

    def __init__(self, layers: Sequence[ProjectedLayer], track: PositionTrack | None) -> None:
        super().__init__(layers=list(layers))
        self._track = track
        self._positions: torch.Tensor | None = None
        self._turns: tuple[Turn, ...] = ()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_others: Any, **_named: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As transformers' own: store the states of a layer, give all that there are."""
        if self._track is not None and layer_idx == 0:
            self._turn(key_states)
        found: tuple[torch.Tensor, torch.Tensor] = self.layers[layer_idx].update(key_states, value_states, *self._turns)
        return found

    @property
    def held_bytes(self) -> int:
        """Bytes of the tensors that are held, positions included."""
        tensors = [each for layer in self.layers for each in (layer.keys, layer.values)] + [self._positions]
        return sum(each.numel() * each.element_size() for each in tensors if each is not None)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._positions = None

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; their number as transformers wants it, negative."""
        super().crop(tokens_to_remove)
        if tokens_to_remove:
            self._change(lambda held: held[:, :tokens_to_remove])

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Sequences in another order, as a beam search wants them."""
        super().reorder_cache(beam_idx)
        self._change(lambda held: held.index_select(0, beam_idx.to(held.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sequence as often as `repeats`."""
        super().batch_repeat_interleave(repeats)
        self._change(lambda held: held.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Only some of the sequences."""
        super().batch_select_indices(indices)
        self._change(lambda held: held[indices, ...])

    def _change(self, change: Any) -> None:
        if self._positions is not None:
            self._positions = change(self._positions)

    def _turn(self, states: torch.Tensor) -> None:
        assert self._track is not None
        fresh = self._track.positions(states.shape[0], states.shape[2])
        self._positions = fresh if self._positions is None else torch.cat([self._positions, fresh], dim=1)
        self._turns = (self._track.turn(fresh, states), self._track.turn(self._positions, states))
