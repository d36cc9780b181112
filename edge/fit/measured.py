"""Fits a model whose file says what its caches cost: where f16 is too large, the smallest that costs little enough.

What fits is `choice`'s, what caches cost `edge.kv`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgepack.edge.fit.choice import EVERYTHING, KV_CHOICES, Fit, Fitter, FitWish
from edgepack.edge.kv.record import find_table, has_record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgepack.edge.fit.devices import Device
    from edgepack.edge.fit.shape import ModelShape
    from edgepack.edge.kv.table import CacheCost, CacheTable
    from edgepack.edge.llama.options import Adapter
    from edgepack.gguf.reader import GGUFHeader

AUTO = "auto"  # the same as saying nothing of the KV type


@dataclass(frozen=True)
class MeasuredFit:
    """A fit, and what its cache is known to cost.

    Attributes:
        fit: what was chosen.
        wish: what it was chosen by: with the caches that the file's table allows.
        cost: of the chosen cache; None where the file does not say, or was not asked because nothing had to give.
        problem: why what the file says does not count; empty where it does.
    """

    fit: Fit
    wish: FitWish
    cost: CacheCost | None = None
    problem: str = ""


def settled(kv_type: str | None) -> str | None:
    """The KV type that a user insists on; None for `auto`."""
    return None if kv_type == AUTO else kv_type


def fit_measured(
    shape: ModelShape,
    device: Device,
    wish: FitWish,
    path: Path,
    header: GGUFHeader,
    adapters: Sequence[Adapter] = (),
    longest: int = 0,
) -> MeasuredFit:
    """Fit as `Fitter` does, by the table of caches that the file carries where something has to give.

    The rule: f16 where everything fits with it. Else, of the caches that were measured, the one of the fewest bytes a
    token whose KL to f16, upper end of its 95 % interval, is within the bound that the table states. Where no smaller
    one is within it, f16 stays and the context gives way. Without a table, q8_0 is the other choice, as before.

    Args:
        shape: the model.
        device: where.
        wish: what the user insists on; a KV type is never overruled.
        path: of the file, which is read wholly where its table is needed.
        header: of its model.
        adapters: that run with it.
        longest: a context up to which the answer is to hold, when other contexts are fitted by the same wish.

    Raises:
        UsageError: as `Fitter`.
    """
    first = Fitter(shape, device, wish).choose()
    if wish.kv_type is not None:
        return MeasuredFit(first, wish, _stated(path, header, first.request.kv_type, adapters))
    if not has_record(header.metadata) or _nothing_gave(first, longest):
        return MeasuredFit(first, wish)
    found = find_table(path, header, adapters)
    if found.table is None:
        return MeasuredFit(first, wish, problem=found.problem)
    wish = replace(wish, kv_choices=allowed(found.table, shape))
    fit = Fitter(shape, device, wish).choose()
    return MeasuredFit(fit, wish, found.table.cost(fit.request.kv_type))


def allowed(table: CacheTable, shape: ModelShape) -> tuple[str, ...]:
    """The caches that a device may take by a table: f16, and the smallest within the bound."""
    smallest = table.smallest(shape)
    return KV_CHOICES[:1] if smallest is None else (KV_CHOICES[0], smallest.name)


def _nothing_gave(fit: Fit, longest: int) -> bool:
    if longest // 256 * 256 > fit.largest_context.get(KV_CHOICES[0], 0):
        return False
    return fit.fits and fit.reason == EVERYTHING and fit.request.kv_type == KV_CHOICES[0]


def _stated(path: Path, header: GGUFHeader, name: str, adapters: Sequence[Adapter]) -> CacheCost | None:
    """The cost of a cache that the user chose, where the file says it."""
    if name == KV_CHOICES[0] or not has_record(header.metadata):
        return None
    table = find_table(path, header, adapters).table
    return None if table is None else table.cost(name)
