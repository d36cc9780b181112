"""Codes a matrix for VPTQ: weighted k-means, a sweep with error feedback, a residual stage, tuned centroids.

Publisher only. Storage is left to `vptq`, codebooks to `vptq_codebook`, feedback to `edgepack.quant.feedback`.
Everything random is seeded, so a matrix is always coded alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgepack.kernels.native import library, pointer
from edgepack.quant.codecs import bits
from edgepack.quant.codecs.codec import Encoded
from edgepack.quant.codecs.torch_threads import one_thread
from edgepack.quant.codecs.vptq.codebook import kmeans, searchable, tune
from edgepack.quant.codecs.vptq.geometry import normalise, plan_geometry
from edgepack.quant.codecs.vptq.stored import Geometry, index_bits
from edgepack.quant.feedback import FeedbackFactor, feedback_factor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.quant.codecs.codec import Statistics
    from edgepack.quant.codecs.vptq.codec import VPTQ


@dataclass(frozen=True)
class Books:
    """Codebooks, float32 [k, v] each, as float16 will hold them; `residual` and `outlier` may be absent."""

    main: torch.Tensor
    residual: torch.Tensor | None = None
    outlier: torch.Tensor | None = None

    def stored(self) -> Books:
        """The same as decoding will see them: float16 of centroids / scale."""
        scale = self.scale
        return Books(*(None if book is None else (book / scale).half().float() * scale for book in self._all()))

    @property
    def scale(self) -> float:
        """The largest magnitude of any centroid, so that float16 never overflows."""
        return max(float(book.abs().max()) for book in self._all() if book is not None) or 1.0

    def _all(self) -> tuple[torch.Tensor | None, ...]:
        return self.main, self.residual, self.outlier


@dataclass(frozen=True)
class Coded:
    """A sweep's result: `decoded` float32 [groups·v, columns], indices int64 [groups, columns], the loss."""

    books: Books
    decoded: torch.Tensor
    index: torch.Tensor
    residual_index: torch.Tensor
    loss: float


# Columns that the kernel rounds before their errors move the columns beyond in one matrix product.
_BLOCK = 128


class _Sweep:
    """What rounding every column gives, filled block by block: arrays as `edgepack_feedback_book` has them.

    Args:
        books: as decoding will see them.
        outlier: bool [columns].
        groups: vectors in a column.
    """

    def __init__(self, books: Books, outlier: torch.Tensor, groups: int) -> None:
        self.books, self.vector, self.groups = books, books.main.shape[1], groups
        self.outlier = np.ascontiguousarray(outlier.numpy().astype(np.uint8))
        self._searched = [None if b is None else searchable(b) for b in (books.main, books.residual, books.outlier)]
        shape = (groups * self.vector, len(outlier))
        self.decoded = np.empty(shape, dtype=np.float32)
        self.index = np.empty((groups, shape[1]), dtype=np.int64)
        self.residual_index = np.empty_like(self.index)
        self.left = np.empty((groups, shape[1], self.vector), dtype=np.float32)

    def round(self, start: int, tile: NDArray[np.float32], upper: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Round the columns from `start`, [groups·v, width]; their errors, scaled for feedback."""
        rows, width = tile.shape
        scratch = np.empty(2 * self.vector * width * 16, dtype=np.float32)
        rounded, errors = np.empty_like(tile), np.empty_like(tile)
        index, residual = (np.empty((self.groups, width), dtype=np.int32) for _ in range(2))
        left = np.empty((self.groups, width, self.vector), dtype=np.float32)
        books = [part for book in self._searched
                 for part in (pointer(book, "const float *"), 0 if book is None else len(book))]  # fmt: skip
        library().edgepack_feedback_book(
            pointer(tile, "const float *"), rows // self.vector, self.vector, width, pointer(upper, "const float *"),
            *books, pointer(self.outlier[start : start + width], "const uint8_t *"), pointer(scratch, "float *"),
            pointer(rounded, "float *"), pointer(errors, "float *"), pointer(index, "int32_t *"),
            pointer(residual, "int32_t *"), pointer(left, "float *"),
        )  # fmt: skip
        part = slice(start, start + width)
        self.decoded[:, part], self.index[:, part], self.residual_index[:, part] = rounded, index, residual
        self.left[:, part] = left
        return errors


class VectorCoder:
    """One normalised matrix, columns in the order of the sweep: falling importance."""

    def __init__(self, weight: torch.Tensor, statistics: _Weights, outlier: torch.Tensor, vector: int) -> None:
        self.weight, self.outlier, self.vector = weight, outlier, vector
        self.importance, self.row_weights, self.hessian = statistics
        self.groups = len(weight) // vector
        self.group_weights = self.row_weights.view(-1, vector).mean(1)
        self.factor: FeedbackFactor | None = None if self.hessian is None else feedback_factor(self.hessian)

    def code(self, geometry: Geometry, tuning: int) -> Coded:
        """The whole method."""
        plain = ~self.outlier
        books = Books(self._kmeans(self._vectors(self.weight), plain, geometry.centroids))
        if geometry.outliers:
            own = self._kmeans(self._vectors(self.weight), self.outlier, geometry.outlier_centroids)
            books = replace(books, outlier=own)
        best, left = self.sweep(books.stored())
        if geometry.residual_centroids:
            books = replace(books, residual=self._kmeans(left, plain, geometry.residual_centroids))
            best, _left = self.sweep(books.stored())
        for _ in range(tuning if self.hessian is not None else 0):
            tuned = self._tuned(best)
            swept, _left = self.sweep(tuned.books)
            best = min((best, tuned, swept), key=lambda coded: coded.loss)
        return min((best, self._tuned(best)), key=lambda coded: coded.loss) if self.hessian is not None else best

    def sweep(self, books: Books) -> tuple[Coded, torch.Tensor]:
        """Round every column, with feedback where H is known; also what the main stage left, [groups, columns, v]."""
        found, work = _Sweep(books, self.outlier, self.groups), self.weight.clone()
        upper = None if self.factor is None else self.factor.upper
        for start in range(0, work.shape[1], _BLOCK):
            stop = min(start + _BLOCK, work.shape[1])
            own = None if upper is None else upper[start:stop, start:stop].contiguous().numpy()
            errors = torch.from_numpy(found.round(start, work[:, start:stop].contiguous().numpy(), own))
            if upper is not None:
                work[:, stop:].addmm_(errors, upper[start:stop, stop:], alpha=-1)
        decoded, index, residual_index = map(torch.from_numpy, (found.decoded, found.index, found.residual_index))
        return Coded(books, decoded, index, residual_index, self.loss(decoded)), torch.from_numpy(found.left)

    def loss(self, decoded: torch.Tensor) -> float:
        """tr(A·E·H·Eᵀ) for E = W - Ŵ and the rows' weights A; H is the diagonal importance where it is not known."""
        error = self.weight - decoded
        product = error.double() * self.importance if self.hessian is None else (error @ self.hessian).double()
        return float(((product * error.double()).sum(1) * self.row_weights).sum())

    def _vectors(self, matrix: torch.Tensor) -> torch.Tensor:
        """[groups·v, columns] as [groups, columns, v]."""
        return matrix.view(self.groups, self.vector, -1).transpose(1, 2)

    def _kmeans(self, vectors: torch.Tensor, columns: torch.Tensor, count: int) -> torch.Tensor:
        weights = self.group_weights[:, None] * self.importance[columns]
        return kmeans(vectors[:, columns].reshape(-1, self.vector), weights.reshape(-1).float(), count)

    def _tuned(self, coded: Coded) -> Coded:
        """Each codebook in turn with the least loss for its indices, the others held."""
        assert self.hessian is not None
        books, plain = coded.books, ~self.outlier
        hessian = self.hessian.double()
        for name, index, columns in (
            ("main", coded.index, plain),
            ("residual", coded.residual_index, plain),
            ("outlier", coded.index, self.outlier),
        ):
            book = getattr(books, name)
            if book is None:
                continue
            rest = self.weight - self.assemble(replace(books, **{name: torch.zeros_like(book)}), coded)
            own = hessian[columns][:, columns]
            coupled = rest if columns.all() else self._coupled(rest, hessian, own, columns)
            target = coupled.view(self.groups, self.vector, -1)
            tuned = tune(book, index[:, columns], target, own, self.group_weights)
            books = replace(books, **{name: tuned}).stored()
        decoded = self.assemble(books, coded)
        return Coded(books, decoded, coded.index, coded.residual_index, self.loss(decoded))

    @staticmethod
    def _coupled(rest: torch.Tensor, hessian: torch.Tensor, own: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """With E = T - Ŷ on these columns and E' elsewhere: H's coupling to E' folded into the target."""
        ridge = 1e-8 * own.diagonal().mean() * torch.eye(len(own), dtype=own.dtype)
        return torch.linalg.solve(own + ridge, hessian[columns] @ rest.double().T).T.float()

    def assemble(self, books: Books, coded: Coded) -> torch.Tensor:
        """Ŵ of these codebooks and a sweep's indices."""
        vectors = books.main[coded.index]
        if books.residual is not None:
            vectors = vectors + books.residual[coded.residual_index]
        if books.outlier is not None:
            vectors[:, self.outlier] = books.outlier[coded.index[:, self.outlier]]
        return vectors.transpose(1, 2).reshape(self.weight.shape)


_Weights = tuple[torch.Tensor, torch.Tensor, "torch.Tensor | None"]


def encode_vptq(weight: NDArray[np.float32], codec: VPTQ, statistics: Statistics) -> Encoded:
    """Code a finite float32 matrix with a settled codec; does not modify it. See `VPTQ.encode`."""
    rows, columns = weight.shape
    known = statistics.column_weights(columns)
    importance = np.ones(columns) if known is None else known
    geometry = plan_geometry((rows, columns), codec)
    order = np.argsort(-importance, kind="stable")
    scaled, scale, bias = normalise(weight, geometry.normalise)
    column_scale = scale[0] if geometry.normalise == "column" else np.ones(columns, dtype=np.float32)
    row_scale = scale[:, 0] if geometry.normalise == "row" else np.ones(rows, dtype=np.float32)
    padding = -rows % geometry.vector
    padded = np.concatenate([scaled, np.repeat(scaled[-1:], padding, axis=0)])[:, order]
    hessian = _hessian(statistics, importance, column_scale, order)
    row_weights = np.concatenate([row_scale.astype(np.float64) ** 2, np.zeros(padding)])
    weights = (
        torch.from_numpy((importance * column_scale**2)[order]),
        torch.from_numpy(row_weights / max(row_weights.mean(), 1e-300)),
        hessian,
    )
    outlier = torch.arange(columns) < geometry.outliers
    coder = VectorCoder(torch.from_numpy(padded), weights, outlier, geometry.vector)
    with one_thread():
        coded = coder.code(geometry, codec.tuning)
    return _store(coded, geometry, order, scale, bias, (rows, columns))


def _hessian(
    statistics: Statistics,
    importance: NDArray[np.float64],
    column_scale: NDArray[np.float32],
    order: NDArray[np.int64],
) -> torch.Tensor | None:
    """H of the normalised, ordered columns, with mean diagonal 1; None where it is not known."""
    if statistics.hessian is None:
        return None
    matrix = np.asarray(statistics.hessian, dtype=np.float64) * np.outer(column_scale, column_scale)
    matrix = matrix[np.ix_(order, order)]
    return torch.from_numpy((matrix / max(float(np.diagonal(matrix).mean()), 1e-300)).astype(np.float32))


def _store(
    coded: Coded,
    geometry: Geometry,
    order: NDArray[np.int64],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32],
    shape: tuple[int, int],
) -> Encoded:
    """Pack indices in the matrix's own column order."""
    books, factor = coded.books, coded.books.scale
    outliers = order[: geometry.outliers]
    plain = np.setdiff1d(np.arange(shape[1]), outliers)
    place = np.argsort(order)

    def half(book: torch.Tensor | None) -> NDArray[Any]:
        assert book is not None
        array: NDArray[Any] = (book / factor).half().cpu().numpy()
        return array.reshape(-1)

    def packed(index: torch.Tensor, columns: NDArray[np.int64], centroids: int) -> NDArray[np.uint8]:
        return bits.pack(index.cpu().numpy()[:, place[columns]].reshape(-1), index_bits(centroids))

    components: dict[str, NDArray[Any]] = {
        "centroids": half(books.main),
        "indices": packed(coded.index, plain, geometry.centroids),
    }
    if geometry.residual_centroids:
        components["residual_centroids"] = half(books.residual)
        components["residual_indices"] = packed(coded.residual_index, plain, geometry.residual_centroids)
    if geometry.outliers:
        columns = np.sort(outliers)
        components["outlier_columns"] = columns.astype(np.int32)
        components["outlier_centroids"] = half(books.outlier)
        components["outlier_indices"] = packed(coded.index, columns, geometry.outlier_centroids)
    if geometry.normalise == "row":
        components["row_scale"] = scale.reshape(-1).astype(np.float16)
    if geometry.normalise == "column":
        components["column_scale"] = scale.reshape(-1).astype(np.float16)
        components["column_bias"] = (bias.reshape(-1) / np.float32(factor)).astype(np.float16)
    return Encoded("vptq", 1, shape, geometry.parameters(factor), components)
