"""What a matrix coded by VPTQ consists of: sizes of codebooks, and the arrays that are stored. It codes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.quant.codecs import bits
from edgepack.quant.codecs.codec import Component

if TYPE_CHECKING:
    from edgepack.quant.codecs.codec import Parameter

MAX_CENTROIDS = 1 << 16


@dataclass(frozen=True)
class Geometry:
    """What a coded matrix consists of.

    Attributes:
        vector: v, rows in a vector.
        centroids: k1, a power of two.
        residual_centroids: k2, a power of two, or 0 for no residual stage.
        outliers: columns with a codebook of their own.
        outlier_centroids: k0, a power of two; 2 where there are no outliers.
        normalise: `none`; `row`, every row has a scale; `column`, every column has a scale and a bias.
    """

    vector: int
    centroids: int
    residual_centroids: int = 0
    outliers: int = 0
    outlier_centroids: int = 2
    normalise: str = "none"

    def parameters(self, scale: float) -> dict[str, Parameter]:
        """What is stored beside the arrays; centroids are stored less `scale`."""
        return {**vars(self), "scale": scale}

    def layout(self, shape: tuple[int, int]) -> dict[str, Component]:
        """Every component of a matrix of `shape`."""
        rows, columns = shape
        groups = -(-rows // self.vector)
        plain = groups * (columns - self.outliers)
        components = {
            "centroids": Component(np.float16, self.vector * self.centroids),
            "indices": Component(np.uint8, bits.packed_bytes(plain, index_bits(self.centroids))),
        }
        if self.residual_centroids:
            count = bits.packed_bytes(plain, index_bits(self.residual_centroids))
            components["residual_centroids"] = Component(np.float16, self.vector * self.residual_centroids)
            components["residual_indices"] = Component(np.uint8, count)
        if self.outliers:
            count = bits.packed_bytes(groups * self.outliers, index_bits(self.outlier_centroids))
            components["outlier_columns"] = Component(np.int32, self.outliers)
            components["outlier_centroids"] = Component(np.float16, self.vector * self.outlier_centroids)
            components["outlier_indices"] = Component(np.uint8, count)
        if self.normalise == "row":
            components["row_scale"] = Component(np.float16, rows)
        if self.normalise == "column":
            components["column_scale"] = Component(np.float16, columns)
            components["column_bias"] = Component(np.float16, columns)
        return components


def index_bits(centroids: int) -> int:
    """Bits of an index into a codebook."""
    return (centroids - 1).bit_length()
