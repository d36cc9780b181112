"""Which host each input group gets, so that the file meets a budget of memory: a Lagrangian over bytes, and repair.

What a group costs in each host is measured by `grid`; rounding and planning are left to `plan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.gguf.types import GGMLType

if TYPE_CHECKING:
    from collections.abc import Sequence

# From small to large; of types of 256 columns only where rows are whole blocks of them.
_WIDE = (GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K, GGMLType.Q8_0)
_NARROW = (GGMLType.Q4_0, GGMLType.Q5_0, GGMLType.Q8_0)
_TURNS = 60  # of the bisection


@dataclass(frozen=True)
class Offer:
    """One group in one host.

    Attributes:
        kind: the host's type.
        bytes: of the group's matrices.
        cost: of rounding them there, all groups on one scale; less is better.
    """

    kind: GGMLType
    bytes: int
    cost: float


def kinds_for(width: int) -> tuple[GGMLType, ...]:
    """Types that can host rows of so many columns, by size; none where rows are not whole blocks of 32."""
    if width % GGMLType.Q4_K.block_size == 0:
        return _WIDE
    return _NARROW if width % GGMLType.Q8_0.block_size == 0 else ()


def allocate(groups: Sequence[Sequence[Offer]], room: int) -> list[Offer]:
    """One offer a group, together at most `room` bytes, at the least cost.

    Offers are taken by cost + price · bytes, at the least price at which they fit; what room is left goes to the
    change that gains most a byte and still fits, until none does.

    Args:
        groups: their offers, at least one each.
        room: bytes.

    Raises:
        UsageError: even the smallest offers need more.
    """
    least = sum(min(offer.bytes for offer in offers) for offers in groups)
    if least > room:
        raise UsageError(f"expected room for at least {least} bytes of matrices, got {room}")
    low, high = 0.0, 1.0
    while _bytes(_chosen(groups, high)) > room:
        high *= 16.0
    for _ in range(_TURNS):
        middle = (low + high) / 2
        low, high = (middle, high) if _bytes(_chosen(groups, middle)) > room else (low, middle)
    return _filled(groups, _chosen(groups, high), room)


def _chosen(groups: Sequence[Sequence[Offer]], price: float) -> list[Offer]:
    return [min(offers, key=lambda offer: (offer.cost + price * offer.bytes, offer.bytes)) for offers in groups]


def _bytes(offers: Sequence[Offer]) -> int:
    return sum(offer.bytes for offer in offers)


def _filled(groups: Sequence[Sequence[Offer]], chosen: list[Offer], room: int) -> list[Offer]:
    """What room is left used up, the best change a byte first."""
    found, left = list(chosen), room - _bytes(chosen)
    while True:
        changes = [
            ((found[number].cost - offer.cost) / max(1, offer.bytes - found[number].bytes), number, offer)
            for number, offers in enumerate(groups)
            for offer in offers
            if offer.cost < found[number].cost and offer.bytes - found[number].bytes <= left
        ]
        if not changes:
            return found
        _, number, offer = max(changes, key=lambda change: (change[0], -change[1]))
        left -= offer.bytes - found[number].bytes
        found[number] = offer
