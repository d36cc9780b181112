"""Attention whose cache has k dimensions: from a model and a calibration text to caches that `generate` takes.

How the maps get better than principal components is left to `training`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import nn

from edgepack.errors import UnsupportedModelError, UsageError
from edgepack.quant.attention.cache import ProjectedCache, ProjectedLayer
from edgepack.quant.attention.families import layout_of
from edgepack.quant.attention.moments import layer_moments
from edgepack.quant.attention.projector import LearnableProjector, require_rank
from edgepack.quant.attention.rotation import PositionTrack

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from edgepack.quant.attention.families import AttentionLayout
    from edgepack.quant.attention.moments import LayerMoments

Rope = Literal["before", "after", "pairs"]
Metric = Literal["plain", "scores"]
Joined = Literal["head", "layer"]
_POSITION_BYTES = 4


class EigenAttention(nn.Module):  # type: ignore[misc]
    """Maps of keys and values for every layer of a model, which itself is not changed.

    Whoever holds it listens to the model's positions where rope is undone; `release`, or leaving its context, ends
    that, and the model is as it was.

    Args:
        layout: of the model.
        keys: maps of each layer; None keeps keys whole.
        values: likewise.
        rope: where keys are projected: "before" rope turns them (it is undone and done again), "after", or by "pairs".
        moments: that the maps were made of, for training on reconstruction.
    """

    def __init__(
        self,
        layout: AttentionLayout,
        keys: list[LearnableProjector] | None,
        values: list[LearnableProjector] | None,
        rope: Rope,
        moments: tuple[LayerMoments, ...],
    ) -> None:
        super().__init__()
        self.keys = None if keys is None else nn.ModuleList(keys)
        self.values = None if values is None else nn.ModuleList(values)
        self.rope, self.layout, self.moments = rope, layout, moments
        undone = rope == "before" and keys is not None and layout.rotary is not None
        self._track = PositionTrack(layout.rotary) if undone and layout.rotary is not None else None

    @classmethod
    def fit(
        cls,
        model: Any,
        tokens: torch.Tensor,
        *,
        key_rank: int | None,
        value_rank: int | None,
        rope: Rope = "before",
        metric: Metric = "scores",
        joined: Joined = "layer",
    ) -> EigenAttention:
        """Principal components of the keys and values of a calibration text.

        All heads of a layer together need fewer dimensions than each by itself: heads say much of the same.

        Args:
            model: a transformers model of a known family, in evaluation.
            tokens: [sequences, length] to calibrate on.
            key_rank: k of keys; None keeps them whole.
            value_rank: k of values; None keeps them whole.
            rope: as above; without rope in the model there is no difference.
            metric: "plain" for the least error of the states, "scores" for the least error of scores and outputs.
            joined: whether each "head" has a map, or all heads of a "layer" one.

        Raises:
            UnsupportedModelError: no attention, an unknown family, or pairs where rope does not turn whole heads.
            UsageError: k above what is projected together, or nothing to project.
            CalibrationError: no tokens.
        """
        layout = layout_of(model)
        _require_choices(rope, metric, joined)
        groups = layout.kv_heads if joined == "head" else 1
        _require_ranks(layout, groups, key_rank, value_rank)
        if rope == "pairs" and (layout.turned != layout.head or groups != layout.kv_heads):
            raise UnsupportedModelError(
                f"pairs of rope: expected rope over whole heads, each projected by itself, got {layout.turned} of "
                f"{layout.head} elements and heads joined by {joined}"
            )
        moments = layer_moments(model, layout, tokens, groups, before_rope=rope != "after")
        return cls.from_moments(model, moments, key_rank=key_rank, value_rank=value_rank, rope=rope, metric=metric)

    @classmethod
    def from_moments(
        cls,
        model: Any,
        moments: tuple[LayerMoments, ...],
        *,
        key_rank: int | None,
        value_rank: int | None,
        rope: Rope = "before",
        metric: Metric = "scores",
    ) -> EigenAttention:
        """The same of what was seen already, for another k.

        Args:
            model: that `moments` are of.
            moments: of another's `moments`, made with the same `rope` and `joined`.
            key_rank: as in `fit`.
            value_rank: likewise.
            rope: likewise.
            metric: likewise.

        Raises:
            UsageError: k above what is projected together.
        """
        make = LearnableProjector.of_pairs if rope == "pairs" else LearnableProjector.from_moments
        weighted, dtype = metric == "scores", next(model.parameters()).dtype
        keys = key_rank and [make(m.keys, key_rank, m.key_metric if weighted else None, dtype) for m in moments]
        values = value_rank and [
            LearnableProjector.from_moments(m.values, value_rank, m.value_metric if weighted else None, dtype)
            for m in moments
        ]
        return cast(
            "EigenAttention", cls(layout_of(model), keys or None, values or None, rope, moments).to(model.device)
        )

    def cache(self, dtype: torch.dtype | None = None) -> ProjectedCache:
        """An empty cache.

        Args:
            dtype: what is stored; None for the type of the model's own keys.
        """
        layers = [
            ProjectedLayer(self._of(self.keys, index), self._of(self.values, index), dtype)
            for index in range(len(self.layout.attentions))
        ]
        return ProjectedCache(layers, self._track)

    def bytes_per_token(self, element: int = 2) -> int:
        """Bytes that a cache holds for a token, exact: elements of `element` bytes, and 4 for a position once."""
        layers = len(self.layout.attentions)
        elements = sum(
            self.layout.width if maps is None else maps[0].groups * maps[0].rank for maps in (self.keys, self.values)
        )
        return layers * elements * element + (_POSITION_BYTES if self._track is not None else 0)

    def whole_bytes_per_token(self, element: int = 2) -> int:
        """Bytes that a cache of whole keys and values holds for a token."""
        return 2 * len(self.layout.attentions) * self.layout.width * element

    def release(self) -> None:
        """Let go of the model: caches made here work no longer where rope is undone."""
        if self._track is not None:
            self._track.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @staticmethod
    def _of(maps: nn.ModuleList | None, index: int) -> LearnableProjector | None:
        found = None if maps is None else maps[index]
        assert found is None or isinstance(found, LearnableProjector)
        return found


def _require_choices(rope: str, metric: str, joined: str) -> None:
    for name, got, kind in (("rope", rope, Rope), ("metric", metric, Metric), ("joined", joined, Joined)):
        if got not in get_args(kind):
            raise UsageError(f"{name}: expected one of {', '.join(get_args(kind))}, got '{got}'")


def _require_ranks(layout: AttentionLayout, groups: int, key_rank: int | None, value_rank: int | None) -> None:
    if key_rank is None and value_rank is None:
        raise UsageError("k: expected one for keys, for values or for both, got none")
    for rank in (key_rank, value_rank):
        if rank is not None:
            require_rank(rank, layout.width // groups)
