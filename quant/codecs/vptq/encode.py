"""Codes a matrix for VPTQ: normalised, its columns in order of importance, a large one by pieces of rows.

Publisher only. Rounding is left to `coder`, decoding to `codec`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgepack.quant.codecs import bits
from edgepack.quant.codecs.codec import Encoded, check_weight
from edgepack.quant.codecs.pieces import Filled, row_groups, sampled_rows, whole_matrix
from edgepack.quant.codecs.torch_threads import one_thread
from edgepack.quant.codecs.vptq.coder import Books, Coded, VectorCoder
from edgepack.quant.codecs.vptq.geometry import normalise, plan_geometry
from edgepack.quant.codecs.vptq.stored import Geometry, index_bits
from edgepack.quant.feedback import FeedbackFactor, feedback_factor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from edgepack.quant.codecs.codec import RowSource, Statistics
    from edgepack.quant.codecs.vptq.codec import VPTQ

# Up to here a matrix is coded whole; of a larger one codebooks see a sample, in groups that vectors divide.
_WHOLE_WEIGHTS = 1 << 25
_SAMPLE_WEIGHTS = 1 << 23
_SAMPLE_GROUP = 240
_PIECE_WEIGHTS = 1 << 22


def sample_of(source: RowSource) -> NDArray[np.float32]:
    """The rows that codebooks are fitted to: all of a matrix up to 2^25 weights, else 2^23 weights in even groups."""
    if source.matrix_shape[0] * source.matrix_shape[1] <= _WHOLE_WEIGHTS:
        return whole_matrix(source)
    return sampled_rows(source, _SAMPLE_WEIGHTS, _SAMPLE_GROUP)


def encode_vptq(source: RowSource, codec: VPTQ, statistics: Statistics) -> Encoded:
    """Code a finite matrix with a settled codec; does not modify it. See `VPTQ.encode_pieces`."""
    rows, columns = source.matrix_shape
    known = statistics.column_weights(columns)
    sample = check_weight(sample_of(source))
    frame = _Frame.of(sample, codec, (rows, columns), np.ones(columns) if known is None else known, statistics)
    with one_thread():
        coder, row_scale = frame.coder(sample)
        coded = coder.code(frame.geometry, codec.tuning)
        parts = [(coded, row_scale)] if len(sample) == rows else _swept(source, frame, coded.books)
        return _store(parts, coded.books, frame, (rows, columns))


def _swept(source: RowSource, frame: _Frame, books: Books) -> Iterator[tuple[Coded, NDArray[np.float32]]]:
    """Pieces of rows, rounded to codebooks that are known; eight indices of any width end on a byte."""
    for rows in row_groups(source, 8 * frame.geometry.vector, _PIECE_WEIGHTS):
        coder, row_scale = frame.coder(rows)
        yield coder.sweep(books)[0], row_scale


@dataclass(frozen=True)
class _Frame:
    """What all rows of a matrix have in common.

    Attributes:
        geometry: of the codebooks.
        order: columns as the sweep takes them: of falling importance.
        importance: of the columns, mean 1.
        column_scale: [1, columns], ones where columns are not normalised.
        bias: [1, columns] or [1, 1].
        hessian: of the normalised columns in their order, or None.
        factor: for error feedback, or None.
    """

    geometry: Geometry
    order: NDArray[np.int64]
    importance: NDArray[np.float64]
    column_scale: NDArray[np.float32]
    bias: NDArray[np.float32]
    hessian: torch.Tensor | None
    factor: FeedbackFactor | None

    @classmethod
    def of(
        cls,
        sample: NDArray[np.float32],
        codec: VPTQ,
        shape: tuple[int, int],
        importance: NDArray[np.float64],
        statistics: Statistics,
    ) -> _Frame:
        """From some of a matrix's rows, or all."""
        geometry = plan_geometry(shape, codec)
        order = np.argsort(-importance, kind="stable")
        scale, bias = np.ones((1, shape[1]), dtype=np.float32), np.zeros((1, 1), dtype=np.float32)
        if geometry.normalise == "column":
            _scaled, scale, bias = normalise(sample, "column")
        hessian = _hessian(statistics, scale[0], order)
        factor = None if hessian is None else feedback_factor(hessian)
        return cls(geometry, order, importance, scale, bias, hessian, factor)

    def coder(self, rows: NDArray[np.float32]) -> tuple[VectorCoder, NDArray[np.float32]]:
        """A coder of some rows, the last repeated where they do not fill a vector; and the rows' own scales."""
        if self.geometry.normalise == "row":
            scaled, scale, _bias = normalise(rows, "row")
            row_scale = scale[:, 0]
        else:
            scaled, row_scale = (rows - self.bias) / self.column_scale, np.ones(len(rows), dtype=np.float32)
        padding = -len(rows) % self.geometry.vector
        padded = np.concatenate([scaled, np.repeat(scaled[-1:], padding, axis=0)])[:, self.order]
        row_weights = np.concatenate([row_scale.astype(np.float64) ** 2, np.zeros(padding)])
        weights = (
            torch.from_numpy((self.importance * self.column_scale[0] ** 2)[self.order]),
            torch.from_numpy(row_weights / max(row_weights.mean(), 1e-300)),
            self.hessian,
        )
        outlier = torch.arange(len(self.order)) < self.geometry.outliers
        return VectorCoder(torch.from_numpy(padded), weights, outlier, self.geometry.vector, self.factor), row_scale


def _hessian(
    statistics: Statistics, column_scale: NDArray[np.float32], order: NDArray[np.int64]
) -> torch.Tensor | None:
    """H of the normalised, ordered columns, with mean diagonal 1; None where it is not known."""
    known = statistics.read_hessian()
    if known is None:
        return None
    matrix, scale = np.asarray(known, dtype=np.float32)[np.ix_(order, order)], column_scale[order]
    matrix *= scale
    matrix *= scale[:, None]
    matrix /= max(float(np.diagonal(matrix).mean(dtype=np.float64)), 1e-30)
    return torch.from_numpy(matrix)


def _store(
    parts: Iterable[tuple[Coded, NDArray[np.float32]]], books: Books, frame: _Frame, shape: tuple[int, int]
) -> Encoded:
    """Pack indices in the matrix's own column order.

    Args:
        parts: of the rows, in order: what they became, and their own scales.
        books: as decoding will see them.
        frame: of the matrix.
        shape: of the matrix.
    """
    geometry, factor = frame.geometry, books.scale
    outliers = frame.order[: geometry.outliers]
    plain, place = np.setdiff1d(np.arange(shape[1]), outliers), np.argsort(frame.order)
    of_rows = ("indices", "residual_indices", "outlier_indices", "row_scale")
    arrays = {name: Filled(component) for name, component in geometry.layout(shape).items() if name in of_rows}

    def keep(name: str, index: torch.Tensor, columns: NDArray[np.int64], centroids: int) -> None:
        flat = index.numpy()[:, place[columns]].reshape(-1)
        arrays[name].add(bits.pack(flat, index_bits(centroids)))

    for coded, row_scale in parts:
        keep("indices", coded.index, plain, geometry.centroids)
        if geometry.residual_centroids:
            keep("residual_indices", coded.residual_index, plain, geometry.residual_centroids)
        if geometry.outliers:
            keep("outlier_indices", coded.index, np.sort(outliers), geometry.outlier_centroids)
        if geometry.normalise == "row":
            arrays["row_scale"].add(row_scale.astype(np.float16))
    components: dict[str, NDArray[Any]] = {name: array.whole() for name, array in arrays.items()}
    components |= _codebooks(books, factor)
    if geometry.outliers:
        components["outlier_columns"] = np.sort(outliers).astype(np.int32)
    if geometry.normalise == "column":
        components["column_scale"] = frame.column_scale.reshape(-1).astype(np.float16)
        components["column_bias"] = (frame.bias.reshape(-1) / np.float32(factor)).astype(np.float16)
    return Encoded("vptq", 1, shape, geometry.parameters(factor), components)


def _codebooks(books: Books, factor: float) -> dict[str, NDArray[Any]]:
    """Centroids / `factor` as float16, flat."""
    named = {"centroids": books.main, "residual_centroids": books.residual, "outlier_centroids": books.outlier}
    return {name: (book / factor).half().numpy().reshape(-1) for name, book in named.items() if book is not None}
