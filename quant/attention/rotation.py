"""Rope undone and done again, at the positions that a model's rotary module was called with.

It knows nothing of what is stored between the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from torch import nn
    from typing_extensions import Self


def _half_turned(states: torch.Tensor) -> torch.Tensor:
    first, second = states.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


@dataclass(frozen=True)
class Turn:
    """Cosines and sines [batch, 1, tokens, turned]: as in transformers' Llama i turns with i + turned/2."""

    cosines: torch.Tensor
    sines: torch.Tensor

    def apply(self, states: torch.Tensor) -> torch.Tensor:
        """`states` [batch, heads, tokens, head] turned; elements behind the turned ones stay."""
        return self._each(states, lambda part: part * self.cosines + _half_turned(part) * self.sines)

    def undo(self, states: torch.Tensor) -> torch.Tensor:
        """The inverse of `apply`: back by the same angle, yarn's growth of rope divided out."""
        growth = self.cosines.square() + self.sines.square()
        return self._each(states, lambda part: (part * self.cosines - _half_turned(part) * self.sines) / growth)

    def _each(self, states: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        turned = self.cosines.shape[-1]
        if states.shape[-1] == turned:
            return change(states)
        return torch.cat((change(states[..., :turned]), states[..., turned:]), dim=-1)


class PositionTrack:
    """Remembers the positions of a model's last call; a context manager that lets go of the model at its end.

    Args:
        rotary: transformers' module of cosines and sines.
    """

    def __init__(self, rotary: nn.Module) -> None:
        self._rotary = rotary
        self._last: torch.Tensor | None = None
        self._handle = rotary.register_forward_pre_hook(self._note, with_kwargs=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Listen no longer."""
        self._handle.remove()

    def positions(self, batch: int, tokens: int) -> torch.Tensor:
        """int32 [batch, tokens], of the call that runs now.

        Raises:
            UsageError: the model that this listens to was not called, or with another number of tokens.
        """
        if self._last is None or self._last.shape[-1] != tokens:
            got = "no call" if self._last is None else f"a call with {self._last.shape[-1]}"
            raise UsageError(f"projected cache: expected a call of its own model with {tokens} tokens, got {got}")
        return self._last.to(torch.int32).expand(batch, tokens)

    def turn(self, positions: torch.Tensor, like: torch.Tensor) -> Turn:
        """The turn at `positions` [batch, tokens], in the type and on the device of `like`."""
        cosines, sines = self._rotary.forward(like, positions.long())  # not called: this must not be noted
        return Turn(cosines[:, None], sines[:, None])

    def _note(self, _module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._last = named["position_ids"] if "position_ids" in named else arguments[1]
