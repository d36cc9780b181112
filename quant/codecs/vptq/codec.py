"""VPTQ: vectors of consecutive rows of one column as indices into codebooks.

Storage and decoding with numpy alone; k-means, the sweep with error feedback and tuning are left to
`vptq_encode`, which uses torch. Source: VPTQ (EMNLP 2024, arXiv 2409.17066).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgepack.errors import CodecError
from edgepack.quant.codecs import bits
from edgepack.quant.codecs.codec import (
    LONGEST_NUMBER,
    NO_STATISTICS,
    Component,
    Decoder,
    Encoded,
    Parameter,
    RowSource,
    Statistics,
    WholeMatrix,
    check_weight,
)
from edgepack.quant.codecs.parameters import choice, integer, number
from edgepack.quant.codecs.vptq.stored import MAX_CENTROIDS, Geometry, index_bits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

MAX_VECTOR = 16
# Indices looked up together: they and their weights (some 200 KiB) stay in a second-level cache.
_TILE = 1 << 14
NORMALISE = ("none", "row", "column")


def read_geometry(parameters: Mapping[str, Parameter], columns: int) -> Geometry:
    """The geometry that parameters describe; raises CodecError when it is impossible."""
    geometry = Geometry(
        integer(parameters, "vector", 1, MAX_VECTOR),
        integer(parameters, "centroids", 2, MAX_CENTROIDS),
        integer(parameters, "residual_centroids", 0, MAX_CENTROIDS),
        integer(parameters, "outliers", 0, columns - 1),
        integer(parameters, "outlier_centroids", 2, MAX_CENTROIDS),
        choice(parameters, "normalise", NORMALISE),
    )
    for key in ("centroids", "residual_centroids", "outlier_centroids"):
        count = getattr(geometry, key)
        if count & (count - 1) or count == 1:
            raise CodecError(f"parameter '{key}': expected a power of two, got {count}")
    number(parameters, "scale")
    return geometry


@dataclass(frozen=True)
class VPTQ:
    """The codec `vptq`.

    Attributes:
        bits: nominal index bits a weight, 1 to 8; the vector's length and the codebooks follow from the matrix's size.
        vector: v, or 0 to choose.
        residual: whether a residual stage is allowed (`auto`), wanted (`yes`) or not (`no`).
        outliers: share of the columns, those with the largest diag(H), that get their own codebook.
        normalise: `auto` tries none, row and column by the error of plain k-means; or one of these.
        tuning: rounds of centroid tuning against the layer's output, each followed by a sweep.
    """

    bits: int = 3
    vector: int = 0
    residual: str = "auto"
    outliers: float = 0.0
    normalise: str = "auto"
    tuning: int = 2
    name: ClassVar[str] = "vptq"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        integer({"bits": self.bits}, "bits", 1, 8)
        integer({"vector": self.vector}, "vector", 0, MAX_VECTOR)
        choice({"residual": self.residual}, "residual", ("auto", "yes", "no"))
        choice({"normalise": self.normalise}, "normalise", ("auto", *NORMALISE))
        if not 0 <= self.outliers < 1:
            raise CodecError(f"codec 'vptq': outliers: expected a share from 0 to 1, got {self.outliers}")

    def encode(self, weight: NDArray[np.float32], statistics: Statistics = NO_STATISTICS) -> Encoded:
        """As `Codec.encode`; with Hessians by error feedback, with importances by weighted k-means. Needs torch."""
        return self.encode_pieces(WholeMatrix(check_weight(weight)), statistics)

    def encode_pieces(self, source: RowSource, statistics: Statistics = NO_STATISTICS) -> Encoded:
        """As `CodesByPieces.encode_pieces`: of a large matrix, codebooks are fitted to a sample of rows."""
        from edgepack.quant.codecs.vptq.encode import encode_vptq

        return encode_vptq(source, self.settle(source, statistics), statistics)

    @property
    def settled(self) -> bool:
        """As `Settling.settled`."""
        return self.normalise != "auto"

    def settle(self, source: RowSource, statistics: Statistics = NO_STATISTICS) -> VPTQ:
        """As `Settling.settle`: the normalisation, whose scales are stored. Needs torch."""
        from edgepack.quant.codecs.vptq.encode import sample_of
        from edgepack.quant.codecs.vptq.geometry import settled_normalisation

        if self.settled:
            return self
        rows, weights = check_weight(sample_of(source)), statistics.column_weights(source.matrix_shape[1])
        return replace(self, normalise=settled_normalisation(rows, source.matrix_shape, self, weights))

    def draft(self, shape: tuple[int, int]) -> dict[str, Parameter]:
        """As `Codec.draft`. Needs torch."""
        from edgepack.quant.codecs.vptq.geometry import plan_geometry

        return plan_geometry(shape, self).parameters(LONGEST_NUMBER)

    def layout(self, shape: tuple[int, int], parameters: Mapping[str, Parameter]) -> dict[str, Component]:
        """As `Codec.layout`."""
        return read_geometry(parameters, shape[1]).layout(shape)

    def decoder(self, encoded: Encoded) -> Decoder:
        """As `Codec.decoder`."""
        return VectorDecoder(encoded)


class VectorDecoder:
    """Gathers centroids group by group of rows; indices of a group lie side by side, column by column."""

    def __init__(self, encoded: Encoded) -> None:
        self._encoded = encoded
        self._geometry = read_geometry(encoded.parameters, encoded.shape[1])
        self._scale = np.float32(number(encoded.parameters, "scale"))
        self._outliers = self._outlier_columns()
        self._plain = np.setdiff1d(np.arange(encoded.shape[1]), self._outliers)

    def _outlier_columns(self) -> NDArray[np.int64]:
        if not self._geometry.outliers:
            return np.zeros(0, dtype=np.int64)
        columns = self._encoded.components["outlier_columns"].astype(np.int64)
        if columns.min() < 0 or columns.max() >= self._encoded.shape[1] or (np.diff(columns) <= 0).any():
            raise CodecError("codec 'vptq': component 'outlier_columns': expected ascending columns of the matrix")
        return columns

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """As `Decoder.rows`."""
        v, columns = self._geometry.vector, self._encoded.shape[1]
        first, last = start // v, -(-stop // v)
        weights = self._plain_vectors(first, last)
        if self._geometry.outliers:
            whole = np.empty((last - first, v, columns), dtype=np.float32)
            whole[:, :, self._plain] = weights
            outliers = self._gather("outlier_centroids", "outlier_indices", first, last, self._geometry.outliers)
            whole[:, :, self._outliers] = outliers
            weights = whole
        matrix = weights.reshape((last - first) * v, columns)[start - first * v : stop - first * v]
        return self._denormalise(matrix, start, stop)

    def _plain_vectors(self, first: int, last: int) -> NDArray[np.float32]:
        """Weights of the columns that are no outliers, float32 [groups, v, columns]."""
        weights = self._gather("centroids", "indices", first, last, len(self._plain))
        if self._geometry.residual_centroids:
            weights += self._gather("residual_centroids", "residual_indices", first, last, len(self._plain))
        return weights

    def _gather(self, centroids: str, indices: str, first: int, last: int, columns: int) -> NDArray[np.float32]:
        """Vectors of groups `first` to `last`, float32 [groups, v, columns]: one gather for each row of a vector."""
        components: Mapping[str, NDArray[Any]] = self._encoded.components
        v = self._geometry.vector
        book = np.ascontiguousarray(components[centroids].astype(np.float32).reshape(-1, v).T) * self._scale
        width = index_bits(book.shape[1])
        index = bits.unpack(components[indices], width, first * columns, last * columns)
        index = index.reshape(last - first, columns).astype(np.intp)
        vectors = np.empty((last - first, v, columns), dtype=np.float32)
        together = max(1, _TILE // max(columns, 1))
        for start in range(0, last - first, together):
            part = index[start : start + together]
            for row in range(v):
                vectors[start : start + together, row] = np.take(book[row], part, mode="clip")
        return vectors

    def _denormalise(self, matrix: NDArray[np.float32], start: int, stop: int) -> NDArray[np.float32]:
        components = self._encoded.components
        if self._geometry.normalise == "row":
            matrix *= components["row_scale"][start:stop].astype(np.float32)[:, None]
        elif self._geometry.normalise == "column":
            matrix *= components["column_scale"].astype(np.float32)
            matrix += components["column_bias"].astype(np.float32) * self._scale
        return matrix
