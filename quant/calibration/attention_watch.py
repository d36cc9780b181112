"""Lets a visitor see, and change, queries, keys and values where transformers' attention meets them.

What is made of them is left to `attention_moments` and `attention_projection`; how blocks are run to `blocks`.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from edgepack.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from torch import nn

_INTERFACE = "ALL_ATTENTION_FUNCTIONS"  # what a family's module of transformers asks for its attention
_IMPLEMENTATIONS = ("eager", "sdpa")
_EAGER = "eager_attention_forward"
_ROTATIONS = ("apply_rotary_pos_emb", "apply_rotary_pos_emb_interleave", "apply_rotary_emb")


@dataclass(frozen=True)
class AttentionInputs:
    """What one layer's attention computes with.

    Attributes:
        layer: its number, from 0.
        q: queries as they meet the keys, [batch, heads, length, head].
        k, v: keys and values as a cache keeps them, [batch, kv heads, length, head].
        q_before, k_before: both before positions turned them, in the same shapes; `q` and `k` themselves where this
            layer turns nothing; None where the part that is turned is not made of these heads (latent attention).
    """

    layer: int
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    q_before: torch.Tensor | None
    k_before: torch.Tensor | None

    @property
    def rotated(self) -> bool:
        """Whether positions turn keys of this layer."""
        return self.k_before is not self.k


class AttentionVisitor(Protocol):
    """Sees queries, keys and values on their way; whatever it returns is what goes on."""

    def before_rotation(self, layer: int, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys that positions are about to turn, in the family's own layout."""
        ...

    def attention(self, inputs: AttentionInputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values that attention is about to be computed with."""
        ...


class LookingVisitor:
    """A visitor that looks and changes nothing: the base of those that only measure."""

    def before_rotation(self, _layer: int, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As they came."""
        return q, k

    def attention(self, inputs: AttentionInputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As they came, after `look`."""
        self.look(inputs)
        return inputs.q, inputs.k, inputs.v

    def look(self, inputs: AttentionInputs) -> None:
        """Take note of what goes by."""
        raise NotImplementedError


class _Watch:
    """Which layer runs, and what its rotation was given: what two functions of a module have to share."""

    def __init__(self, visitor: AttentionVisitor) -> None:
        self.visitor, self.layer = visitor, -1
        self.turned: tuple[torch.Tensor, torch.Tensor] | None = None

    def enter(self, module: nn.Module, _arguments: Any) -> None:
        """A forward pre-hook of every module that knows its layer."""
        self.layer, self.turned = int(module.layer_idx), None

    def rotate(self, rotation: Callable[..., Any], q: torch.Tensor, k: torch.Tensor, *rest: Any, **named: Any) -> Any:
        """In the place of a module's rotation."""
        if q.ndim == k.ndim == 4:
            q, k = self.visitor.before_rotation(self.layer, q, k)
            self.turned = (q, k)
        return rotation(q, k, *rest, **named)

    def attend(
        self,
        attention: Callable[..., Any] | None,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *rest: Any,
        **named: Any,
    ) -> Any:
        """In the place of an attention function; without one, the module's family has it."""
        before = (query, key) if self.turned is None else tuple(map(_as_kept, self.turned, (query, key)))
        self.turned = None
        inputs = AttentionInputs(self.layer, query, key, value, *before)
        inner = attention or getattr(sys.modules[type(module).__module__], _EAGER)
        return inner(module, *self.visitor.attention(inputs), *rest, **named)


def _as_kept(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor | None:
    """`before` in the shape of `after` [batch, heads, length, head]; dimensions that are not turned stand last."""
    if before.shape[:3] != after.shape[:3]:
        before = before.transpose(1, 2)
    if before.shape[:3] != after.shape[:3]:
        return None
    if before.shape[-1] > after.shape[-1]:
        return None
    return torch.cat([before, after[..., before.shape[-1] :]], dim=-1) if before.shape != after.shape else before


@contextmanager
def watched_attention(model: nn.Module, visitor: AttentionVisitor) -> Iterator[None]:
    """Let `visitor` see every attention of `model`, a model of transformers, while the context is open.

    The functions that the family's modules of transformers look up are replaced meanwhile, in this process: two
    models of one family must not be watched at a time.

    Raises:
        UnsupportedModelError: the family computes its attention by itself, or has none.
    """
    watch = _Watch(visitor)
    layers = [module for module in model.modules() if isinstance(getattr(module, "layer_idx", None), int)]
    homes = {type(module).__module__: sys.modules[type(module).__module__] for module in layers}
    watchable = [home for home in homes.values() if hasattr(home, _INTERFACE)]
    if not watchable:
        raise UnsupportedModelError(_why_not(model))
    with ExitStack() as stack:
        for home in watchable:
            stack.enter_context(_replaced_rotations(home, watch))
        for interface in {id(getattr(home, _INTERFACE)): getattr(home, _INTERFACE) for home in watchable}.values():
            stack.enter_context(_replaced_attention(interface, watch))
        for module in layers:
            stack.callback(module.register_forward_pre_hook(watch.enter).remove)
        yield


def _why_not(model: nn.Module) -> str:
    settings = model.config.get_text_config()
    if not getattr(settings, "num_attention_heads", None):
        return f"model type '{settings.model_type}' has no attention: it keeps a state, not keys and values"
    return f"model type '{settings.model_type}': transformers computes its attention where it cannot be watched"


@contextmanager
def _replaced_rotations(home: ModuleType, watch: _Watch) -> Iterator[None]:
    before = {name: getattr(home, name) for name in _ROTATIONS if hasattr(home, name)}
    try:
        for name, rotation in before.items():
            setattr(home, name, partial(watch.rotate, rotation))
        yield
    finally:
        for name, rotation in before.items():
            setattr(home, name, rotation)


@contextmanager
def _replaced_attention(interface: Any, watch: _Watch) -> Iterator[None]:
    known = dict(interface._local_mapping)  # noqa: SLF001
    try:
        for name in _IMPLEMENTATIONS:
            interface[name] = partial(watch.attend, interface.get(name))
        yield
    finally:
        interface._local_mapping.clear()  # noqa: SLF001
        interface._local_mapping.update(known)  # noqa: SLF001
