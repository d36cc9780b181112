"""What a search of seeds finds for a run of weights, before it is stored; finding and storing are left to others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.quant.codecs import bits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COEFFICIENT_BITS = 4


@dataclass(frozen=True)
class Found:
    """The best seed of every block of a run of weights.

    Attributes:
        seeds: [blocks], 1 … 2^K - 1.
        exponents: int16 [blocks], of any size; blocks without a coefficient have the lowest.
        coefficients: packed, four bits each, as they are stored: [blocks, P], -8 … 7.
    """

    seeds: NDArray[np.uint16]
    exponents: NDArray[np.int16]
    coefficients: NDArray[np.uint8]


def pack_coefficients(coefficients: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Coefficients, -8 … 7, as four bits each."""
    return bits.pack(coefficients.reshape(-1) & 15, COEFFICIENT_BITS)
