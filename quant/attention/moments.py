"""Means and covariances of keys, values and queries over a calibration text, layer by layer.

What is done with them is left to `projector`; other statistics of activations to `quant/calibration`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache

from edgepack.errors import CalibrationError
from edgepack.quant.attention.projector import joined
from edgepack.quant.attention.rotation import PositionTrack

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from edgepack.quant.attention.families import AttentionLayout

_DISTANCES = 64  # between query and key at which a metric before rope is looked at


@dataclass(frozen=True)
class Moments:
    """Of vectors in groups.

    Attributes:
        mean: [groups, width] float64.
        covariance: [groups, width, width] float64, about the mean.
        count: vectors seen.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    count: int

    @property
    def width(self) -> int:
        """Elements of a vector."""
        return int(self.mean.shape[1])


@dataclass(frozen=True)
class LayerMoments:
    """What was seen in a layer.

    Attributes:
        keys: as they will be projected: before rope or after.
        values: always the same.
        key_metric: [groups, width, width]: mean of what an error of a key changes in a query's squared score.
        value_metric: likewise, what an error of a value changes in the squared output of the layer's attention.
    """

    keys: Moments
    values: Moments
    key_metric: torch.Tensor
    value_metric: torch.Tensor


class _Sums:
    """Sums of vectors and of their products."""

    def __init__(self) -> None:
        self.count, self.total, self.products = 0, torch.zeros(()), torch.zeros(())

    def add(self, states: torch.Tensor) -> None:
        """States [batch, groups, tokens, width]."""
        flat = states.detach().transpose(0, 1).flatten(1, 2).double().cpu()
        self.count += flat.shape[1]
        self.total = self.total + flat.sum(1)
        self.products = self.products + flat.transpose(-1, -2) @ flat

    def second(self) -> torch.Tensor:
        """Mean products [groups, width, width]."""
        return self.products / self.count

    def moments(self) -> Moments:
        mean = self.total / self.count
        return Moments(mean, self.second() - mean[..., :, None] * mean[..., None, :], self.count)


class _Recorder(DynamicCache):  # type: ignore[misc]
    """Passes keys and values on and sums them; those of a layer that come for the second time too."""

    def __init__(self, groups: int, track: PositionTrack | None, sums: Sequence[tuple[_Sums, _Sums]]) -> None:
        super().__init__()
        self._groups, self._track, self._sums = groups, track, sums

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *others: Any, **named: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._sums[layer_idx]
        fresh = key_states
        if self._track is not None:
            positions = self._track.positions(key_states.shape[0], key_states.shape[2])
            fresh = self._track.turn(positions, key_states).undo(key_states)
        keys.add(joined(fresh, self._groups))
        values.add(joined(value_states, self._groups))
        found: tuple[torch.Tensor, torch.Tensor] = super().update(key_states, value_states, layer_idx, *others, **named)
        return found


def layer_moments(
    model: Any, layout: AttentionLayout, tokens: torch.Tensor, groups: int, *, before_rope: bool
) -> tuple[LayerMoments, ...]:
    """Moments of every layer over sequences of tokens, run one after the other.

    Args:
        model: a transformers model.
        layout: of it.
        tokens: [sequences, length].
        groups: as `LearnableProjector` joins heads.
        before_rope: whether keys and queries are looked at before rope turns them.

    Raises:
        CalibrationError: no sequence, or the model's keys are not finite on them.
    """
    if tokens.ndim != 2 or not tokens.numel():
        raise CalibrationError(f"attention moments: expected tokens [sequences, length], got {list(tokens.shape)}")
    sums = [(_Sums(), _Sums()) for _ in layout.attentions]
    queries = [_Sums() for _ in layout.attentions]
    track = None if layout.rotary is None else PositionTrack(layout.rotary)
    hooks = [
        module.register_forward_hook(_query_hook(layout, track, held, before_rope=before_rope))
        for module, held in zip(layout.queries, queries, strict=True)
    ]
    try:
        with torch.inference_mode():
            for sequence in tokens:
                recorder = _Recorder(groups, track if before_rope else None, sums)
                model(input_ids=sequence[None].to(model.device), past_key_values=recorder, use_cache=True)
    finally:
        for hook in hooks:
            hook.remove()
        if track is not None:
            track.release()
    return tuple(_gathered(layout, groups, tokens.shape[1], sums, queries, before_rope=before_rope))


def _query_hook(layout: AttentionLayout, track: PositionTrack | None, held: _Sums, *, before_rope: bool) -> Any:
    """Sums products of queries, those of the heads that read one head of keys together."""

    def note(_module: nn.Module, _arguments: Any, found: torch.Tensor) -> None:
        batch, tokens = found.shape[:2]
        rows = found.reshape(batch, tokens, -1)[..., : layout.heads * layout.head]
        states = rows.reshape(batch, tokens, layout.heads, layout.head).transpose(1, 2)
        if track is not None and not before_rope:
            states = track.turn(track.positions(batch, tokens), states).apply(states)
        shared = layout.heads // layout.kv_heads
        held.add(states.reshape(batch, layout.kv_heads, shared * tokens, layout.head))

    return note


def _gathered(
    layout: AttentionLayout,
    groups: int,
    length: int,
    sums: Sequence[tuple[_Sums, _Sums]],
    queries: Sequence[_Sums],
    *,
    before_rope: bool,
) -> Iterator[LayerMoments]:
    for layer, ((keys, values), asked) in enumerate(zip(sums, queries, strict=True)):
        metric = asked.second()
        if before_rope and layout.turned:
            metric = _over_distances(metric, layout, length)
        if not bool(torch.isfinite(keys.products).all() and torch.isfinite(values.products).all()):
            raise CalibrationError(f"attention moments: expected finite keys and values, got others in layer {layer}")
        yield LayerMoments(
            keys.moments(), values.moments(), _joined_metric(metric, groups), _value_metric(layout, layer, groups)
        )


def _over_distances(metric: torch.Tensor, layout: AttentionLayout, length: int) -> torch.Tensor:
    """The mean of R(Δ)ᵀ · M · R(Δ) over the distances Δ of a text of `length` tokens, as often as each is there.

    An error e of a key before rope changes a score by q · R(Δ) · e.
    """
    assert layout.rotary is not None
    distances = torch.linspace(0, length - 1, min(_DISTANCES, length)).round().double()
    weights = (length - distances) / (length - distances).sum()
    half = layout.turned // 2
    angles = distances[:, None] * layout.rotary.inv_freq.double().cpu()
    turn = torch.eye(layout.head, dtype=torch.float64).repeat(len(distances), 1, 1)
    first, second = torch.arange(half), torch.arange(half) + half
    turn[:, first, first], turn[:, second, second] = angles.cos(), angles.cos()
    turn[:, first, second], turn[:, second, first] = -angles.sin(), angles.sin()
    turned = turn.transpose(-1, -2)[:, None] @ metric[None] @ turn[:, None]
    return (weights[:, None, None, None] * turned).sum(0)


def _joined_metric(metric: torch.Tensor, groups: int) -> torch.Tensor:
    """[heads, head, head] → [groups, width, width]: heads that are joined do not mix."""
    heads, head, _ = metric.shape
    each = heads // groups
    found = torch.zeros(groups, each * head, each * head, dtype=torch.float64)
    for index in range(heads):
        at = slice(index % each * head, (index % each + 1) * head)
        found[index // each, at, at] = metric[index]
    return found


def _value_metric(layout: AttentionLayout, layer: int, groups: int) -> torch.Tensor:
    """Of the heads that read one head of values, the sum of Wᵀ · W of their columns in the output's weights."""
    weight = layout.outputs[layer].double().cpu().reshape(-1, layout.heads, layout.head)
    products = torch.einsum("ohi,ohj->hij", weight, weight)
    shared = products.reshape(layout.kv_heads, -1, layout.head, layout.head).sum(1)
    return _joined_metric(shared, groups)
