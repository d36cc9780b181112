"""How a model is opened at one context after another: the rows of `edgepack fit`'s table.

What is chosen at each is `choice`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgepack.edge.fit.choice import Fitter, FitWish
from edgepack.edge.fit.memory import plan_memory

if TYPE_CHECKING:
    from edgepack.edge.fit.devices import Device
    from edgepack.edge.fit.shape import ModelShape

_FIRST, _MOST = 1024, 8


@dataclass(frozen=True)
class ContextFit:
    """A context, and what it takes on the device.

    Attributes:
        ctx: tokens.
        fits: whether anything does.
        n_gpu_layers: layers on the GPU.
        kv_type: of the KV cache.
        kv: bytes of it on the device.
        total: bytes on the device: weights, cache, compute buffer, drivers.
    """

    ctx: int
    fits: bool
    n_gpu_layers: int
    kv_type: str
    kv: int
    total: int


def contexts_of(shape: ModelShape, longest: int | None = None) -> list[int]:
    """Powers of two up to the context of training, that itself, and `longest`; the last eight where there are more."""
    powers = {_FIRST << power for power in range(22) if _FIRST << power < shape.n_ctx_train}
    return sorted({*powers, shape.n_ctx_train, *([] if longest is None else [longest])})[-_MOST:]


def by_context(shape: ModelShape, device: Device, wish: FitWish) -> tuple[ContextFit, ...]:
    """One row a context; `wish.n_ctx` is one of them.

    Raises:
        UsageError: as `Fitter`.
    """
    return tuple(_at(shape, device, replace(wish, n_ctx=ctx)) for ctx in contexts_of(shape, wish.n_ctx))


def _at(shape: ModelShape, device: Device, wish: FitWish) -> ContextFit:
    fitter = Fitter(shape, device, wish)
    request, fits = fitter.first()
    plan = plan_memory(shape, request, wish.cpu_weights)
    use = plan.gpu if device.is_gpu and request.n_gpu_layers else plan.cpu
    total = use.total + fitter.overhead(request)
    return ContextFit(request.n_ctx, fits, request.n_gpu_layers, request.kv_type, use.kv, total)
