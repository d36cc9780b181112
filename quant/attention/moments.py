"""Means and covariances of keys and values over a calibration text, and what an error of theirs changes.

They are summed by `quant.calibration`; what is done with them is left to `projector`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from edgepack.errors import CalibrationError
from edgepack.quant.calibration.attention_moments import running_moments

if TYPE_CHECKING:
    from edgepack.quant.attention.families import AttentionLayout
    from edgepack.quant.calibration.attention_moments import Kind, SecondMoments

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
        CalibrationError: no sequence.
        NumericError: the model's queries, keys or values are not finite on them; the text names the layer.
        UnsupportedModelError: as `running_moments`.
    """
    if tokens.ndim != 2 or not tokens.numel():
        raise CalibrationError(f"attention moments: expected tokens [sequences, length], got {list(tokens.shape)}")
    kinds: tuple[Kind, ...] = ("q_before", "k_before", "v") if before_rope else ("q", "k", "v")
    found = []
    for layer, seen in enumerate(running_moments(model, tokens, kinds=kinds)):
        asked, keys, values = (seen.moments[kind] for kind in kinds)
        metric = _by_head(asked)
        if before_rope and layout.turned:
            metric = _over_distances(metric, layout, tokens.shape[1])
        found.append(
            LayerMoments(
                _grouped(keys, groups), _grouped(values, groups), _joined_metric(metric, groups),
                _value_metric(layout, layer, groups),
            )
        )  # fmt: skip
    return tuple(found)


def _grouped(moments: SecondMoments, groups: int) -> Moments:
    """Of heads side by side, those of neighbours together."""
    width, mean = moments.width // groups, torch.from_numpy(moments.mean)
    covariance = torch.from_numpy(moments.centred)
    parts = [slice(each * width, (each + 1) * width) for each in range(groups)]
    return Moments(mean.reshape(groups, width), torch.stack([covariance[part, part] for part in parts]), moments.count)


def _by_head(moments: SecondMoments) -> torch.Tensor:
    """Mean products of each head's vectors [heads, head, head]."""
    return torch.stack([torch.from_numpy(moments.of_head(each).raw) for each in range(moments.heads)])


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
