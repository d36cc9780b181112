"""What an archive will take for the integers of a row, and what a bit of it is worth: for a search that heeds both.

The density lies between a Gaussian's and Laplace's, as the tables of `packaging.coding.grid_tables` do, with the row's
own mean magnitude. The compiled search has the same figures; how integers are really coded is `edgepack.packaging`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.quant.refine.blocks import FORMS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.gguf.types import GGMLType

# exp(-(1 - w) x² / 2 - w √2 x), w = .4: its mean magnitude, its integral over both sides, and bits of x and of x².
MEAN, INTEGRAL, LINEAR, SQUARE = 0.7529, 1.9656, 0.8161, 0.4328
LEAST_SCALE = 0.35  # of integers that are nearly all 0
# Of the mean curvature of a matrix' rows, at least: rows that the calibration text hardly saw are no free ones.
_ROW_FLOOR = 0.05


def row_rates(rate: float, costs: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a bit is worth in e H eᵀ of each row, float32 [rows].

    Args:
        rate: nats a token that a bit is worth.
        costs: diagonal of G, float32 [rows]; an error costs ½ G_rr · e H eᵀ nats.
    """
    floor = max(_ROW_FLOOR * float(costs.mean(dtype=np.float64)), 1e-30)
    return np.asarray(2 * rate / np.maximum(costs, floor), np.float32)


def row_bits(kind: GGMLType, quants: NDArray[np.int8]) -> NDArray[np.float64]:
    """Bits that the integers of each row are expected to take, float64 [rows].

    Args:
        kind: of `FORMS`.
        quants: [rows, columns]: q of every weight.
    """
    magnitudes = np.abs(quants.astype(np.float64) - FORMS[kind].zero)
    scale = np.maximum(magnitudes.mean(1) / MEAN, LEAST_SCALE)[:, None]
    each = LINEAR * magnitudes / scale + SQUARE * np.square(magnitudes / scale)
    return np.asarray(each.sum(1) + quants.shape[1] * 0.5 * np.log2(1 + np.square(INTEGRAL * scale[:, 0])))
