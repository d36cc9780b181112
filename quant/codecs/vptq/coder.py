"""Rounds one normalised matrix to VPTQ's codebooks: k-means, sweeps with error feedback, a residual stage, tuning.

Publisher only. Which rows, in which order of columns, and storing are left to `encode`; codebooks to `codebook`,
feedback to `edgepack.quant.feedback`. Everything random is seeded, so a matrix is always coded alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.kernels.native import library, pointer
from edgepack.quant.codecs.vptq.codebook import kmeans, searchable, tune

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.quant.codecs.vptq.stored import Geometry
    from edgepack.quant.feedback import FeedbackFactor


# Importance of columns, weights of rows (float64 both), H or None.
Weights = tuple[torch.Tensor, torch.Tensor, "torch.Tensor | None"]


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


_STRIP = 256  # columns of errors that are multiplied with H at a time
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

    def __init__(
        self,
        weight: torch.Tensor,
        statistics: Weights,
        outlier: torch.Tensor,
        vector: int,
        factor: FeedbackFactor | None,
    ) -> None:
        self.weight, self.outlier, self.vector = weight, outlier, vector
        self.importance, self.row_weights, self.hessian = statistics
        self.groups = len(weight) // vector
        self.group_weights = self.row_weights.view(-1, vector).mean(1)
        self.factor = factor

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
        """tr(A·E·H·Eᵀ) for E = W - Ŵ and the rows' weights A; 0 where H is not known: there is one candidate then.

        Of all rows: where one direction of inputs outweighs all others, a few rows decide, and nobody knows which.
        """
        if self.hessian is None:
            return 0.0
        error, sums = self.weight - decoded, torch.zeros(len(decoded), dtype=torch.float64)
        for start in range(0, error.shape[1], _STRIP):  # H is symmetric: what is below its diagonal is not multiplied
            own = error[:, start : start + _STRIP]
            product = own @ self.hessian[start : start + _STRIP, start:]
            product[:, own.shape[1] :] *= 2
            # A row's sum in float32 is right to a few parts in 10⁷; only losses that differ by more decide anything.
            sums += torch.linalg.vecdot(product, error[:, start:])
        return float((sums * self.row_weights).sum())

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
        for name, index, columns in (
            ("main", coded.index, plain),
            ("residual", coded.residual_index, plain),
            ("outlier", coded.index, self.outlier),
        ):
            book = getattr(books, name)
            if book is None:
                continue
            rest, own = self.weight, self.hessian
            if books.residual is not None or books.outlier is not None:
                rest = rest - self.assemble(replace(books, **{name: torch.zeros_like(book)}), coded)
            if not columns.all():
                own = own[columns][:, columns]
                rest = self._coupled(rest, own, columns)
            target = rest.view(self.groups, self.vector, -1)
            tuned = tune(book, index[:, columns], target, own, self.group_weights)
            books = replace(books, **{name: tuned}).stored()
        decoded = self.assemble(books, coded)
        return Coded(books, decoded, coded.index, coded.residual_index, self.loss(decoded))

    def _coupled(self, rest: torch.Tensor, own: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """With E = T - Ŷ on these columns and E' elsewhere: H's coupling to E' folded into the target."""
        assert self.hessian is not None
        precise = own.double()
        ridge = 1e-8 * precise.diagonal().mean() * torch.eye(len(own), dtype=precise.dtype)
        return torch.linalg.solve(precise + ridge, self.hessian[columns].double() @ rest.double().T).T.float()

    def assemble(self, books: Books, coded: Coded) -> torch.Tensor:
        """Ŵ of these codebooks and a sweep's indices."""
        # Outliers' indices are of their own, larger codebook: those are put in below.
        vectors = books.main[coded.index.clamp(max=len(books.main) - 1)]
        if books.residual is not None:
            vectors = vectors + books.residual[coded.residual_index]
        if books.outlier is not None:
            vectors[:, self.outlier] = books.outlier[coded.index[:, self.outlier]]
        return vectors.transpose(1, 2).reshape(self.weight.shape)
