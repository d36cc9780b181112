"""Low-rank factors of one matrix, or of the error that quantisation made in it. Pure functions in float64.

Sources: SVD-LLM, Wang et al. (arXiv 2403.07378), for whitening; QERA, Zhang et al. (arXiv 2410.06040), for the exact
and the diagonal correction of a quantisation error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import NumericError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]
    Wide = NDArray[np.float64]

_DAMPING = 1e-6  # of the mean diagonal, so that rarely active channels can be divided by
_STRIP = 512  # columns of a second moment that are widened at a time


@dataclass(frozen=True)
class Factors:
    """`left` [out, k] · `right` [k, in] + `mean` [in] on every row, float32."""

    left: Matrix
    right: Matrix
    mean: Matrix | None = None

    @property
    def rank(self) -> int:
        """K."""
        return int(self.right.shape[0])

    def dense(self) -> Matrix:
        """Multiplied back: [out, in]."""
        product = self.left @ self.right
        return product if self.mean is None else product + self.mean


def rank_for_variance(singular: Wide, variance: float) -> int:
    """The least k whose largest squared singular values hold `variance` (0 to 1) of their sum; at least 1."""
    share = np.cumsum(singular**2) / max(float((singular**2).sum()), 1e-300)
    return min(int(np.searchsorted(share, variance - 1e-12)) + 1, len(singular))


def centred_svd(weight: Matrix, *, rank: int | None = None, variance: float | None = None) -> Factors:
    """The best factors in the Frobenius norm after the mean row is taken out.

    Args:
        weight: [out, in].
        rank: k, or None with `variance`.
        variance: the share of the centred matrix's squared singular values to keep.
    """
    mean = weight.astype(np.float64).mean(axis=0)
    left, right = _terms(weight - mean, rank, variance)
    return Factors(left.astype(np.float32), right.astype(np.float32), mean.astype(np.float32))


def whitened_svd(weight: Matrix, hessian: Matrix, *, rank: int | None = None, variance: float | None = None) -> Factors:
    """The best factors for the layer's outputs: least tr((W - Ŵ)·H·(W - Ŵ)ᵀ).

    Args:
        weight: [out, in].
        hessian: XᵀX / tokens [in, in].
        rank: k, or None with `variance`.
        variance: the share of the outputs' energy to keep.
    """
    return _output_factors(weight.astype(np.float64), hessian, rank, variance)


def correction(error: Matrix, second_moment: Matrix, rank: int) -> Factors:
    """The best rank-k stand-in for a quantisation error E = W - Ŵ: least E‖(E - L·R)·x‖².

    Args:
        error: [out, in].
        second_moment: R = E[x·xᵀ] [in, in] for the exact solution, or its diagonal E[x²] [in].
        rank: k.
    """
    wide = error.astype(np.float64)
    if second_moment.ndim == 1:
        floor = _DAMPING * max(float(second_moment.mean()), 1e-30)
        scale = np.sqrt(np.maximum(second_moment.astype(np.float64), floor))
        left, right = _terms(wide * scale, rank, None)
        return Factors(left.astype(np.float32), (right / scale).astype(np.float32))
    return _output_factors(wide, second_moment, rank, None)


def _terms(matrix: Wide, rank: int | None, variance: float | None) -> tuple[Wide, Wide]:
    """The first k terms of a singular value decomposition, the singular values shared evenly: [m, k] and [k, n].

    From the eigenvectors of the smaller Gram matrix, in a quarter of the time: a singular value below 1e-8 of the
    largest is lost to rounding, which no k that is worth keeping reaches. With U the first of M·Mᵀ the best matrix is
    U·Uᵀ·M.
    """
    if matrix.shape[0] > matrix.shape[1]:
        right, left = _terms(matrix.T, rank, variance)
        return left.T, right.T
    root, basis = _basis(matrix @ matrix.T, rank, variance)
    return basis * root, _divided(basis.T @ matrix, root)


def _output_factors(matrix: Wide, hessian: Matrix, rank: int | None, variance: float | None) -> Factors:
    """The first terms of M·S for a root S of H, S taken off again on the right; as `_terms`.

    Where M is not taller than wide, no root is made nor inverted: U comes from M·H·Mᵀ.
    """
    if not np.isfinite(hessian).all():
        raise NumericError("low rank: NaN or infinity in the second moment of a layer's inputs")
    if matrix.shape[0] <= matrix.shape[1]:
        root, basis = _basis(_outputs_gram(matrix, hessian), rank, variance)
        left, right = basis * root, _divided(basis.T @ matrix, root)
    else:
        lower = triangular_root(hessian)
        root, basis = _basis(lower.T @ (matrix.T @ matrix) @ lower, rank, variance)
        left, right = _divided((matrix @ (lower @ basis)).T, root).T, root[:, None] * np.linalg.solve(lower.T, basis).T
    return Factors(left.astype(np.float32), right.astype(np.float32))


def _outputs_gram(matrix: Wide, hessian: Matrix) -> Wide:
    """M·(H + damping)·Mᵀ, [m, m]; H is widened by strips: it may be the largest array there is."""
    damping = _DAMPING * max(float(np.diagonal(hessian).mean(dtype=np.float64)), 1e-30)
    gram: Wide = damping * (matrix @ matrix.T)
    for start in range(0, len(hessian), _STRIP):
        strip = slice(start, start + _STRIP)
        gram += (matrix @ hessian[:, strip].astype(np.float64)) @ matrix[:, strip].T
    return gram


def _basis(gram: Wide, rank: int | None, variance: float | None) -> tuple[Wide, Wide]:
    """Of a Gram matrix the first k eigenvectors as columns [m, k], and the roots [k] of the singular values."""
    values, vectors = np.linalg.eigh(gram)
    singular = np.sqrt(np.maximum(values[::-1], 0))
    k = rank_for_variance(singular, variance) if variance is not None else min(rank or 1, len(singular))
    return np.sqrt(singular[:k]), np.ascontiguousarray(vectors[:, ::-1][:, :k])


def _divided(rows: Wide, root: Wide) -> Wide:
    """Rows [k, n] / root [k], zeros where the root is."""
    divided: Wide = np.divide(rows, root[:, None], out=np.zeros_like(rows), where=root[:, None] > 0)
    return divided


def triangular_root(hessian: Matrix) -> Wide:
    """L of a positive semi-definite H = L·Lᵀ, damped by a millionth of its mean diagonal or by what it needs.

    Any root serves: ‖(W - Ŵ)·L‖² is tr((W - Ŵ)·H·(W - Ŵ)ᵀ) for each of them, and Cholesky's costs least.
    """
    wide = hessian.astype(np.float64)
    damping = _DAMPING * max(float(np.diag(wide).mean()), 1e-30)
    while True:
        try:
            lower = np.linalg.cholesky(wide + damping * np.eye(len(wide)))
        except np.linalg.LinAlgError:
            damping *= 10
            continue
        return np.asarray(lower, dtype=np.float64)
