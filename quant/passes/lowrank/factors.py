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


def _cut(left: Wide, singular: Wide, right: Wide, rank: int | None, variance: float | None) -> tuple[Wide, Wide]:
    """The first k terms with the singular values shared evenly."""
    k = rank_for_variance(singular, variance) if variance is not None else min(rank or 1, len(singular))
    root = np.sqrt(singular[:k])
    return left[:, :k] * root, root[:, None] * right[:k]


def centred_svd(weight: Matrix, *, rank: int | None = None, variance: float | None = None) -> Factors:
    """The best factors in the Frobenius norm after the mean row is taken out.

    Args:
        weight: [out, in].
        rank: k, or None with `variance`.
        variance: the share of the centred matrix's squared singular values to keep.
    """
    mean = weight.astype(np.float64).mean(axis=0)
    left, right = _cut(*np.linalg.svd(weight - mean, full_matrices=False), rank, variance)
    return Factors(left.astype(np.float32), right.astype(np.float32), mean.astype(np.float32))


def whitened_svd(weight: Matrix, hessian: Matrix, *, rank: int | None = None, variance: float | None = None) -> Factors:
    """The best factors for the layer's outputs: least tr((W - Ŵ)·H·(W - Ŵ)ᵀ).

    Args:
        weight: [out, in].
        hessian: XᵀX / tokens [in, in].
        rank: k, or None with `variance`.
        variance: the share of the outputs' energy to keep.
    """
    root, inverse = triangular_roots(hessian)
    left, right = _cut(*np.linalg.svd(weight.astype(np.float64) @ root, full_matrices=False), rank, variance)
    return Factors(left.astype(np.float32), (right @ inverse).astype(np.float32))


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
        left, right = _cut(*np.linalg.svd(wide * scale, full_matrices=False), rank, None)
        return Factors(left.astype(np.float32), (right / scale).astype(np.float32))
    root, inverse = triangular_roots(second_moment)
    left, right = _cut(*np.linalg.svd(wide @ root, full_matrices=False), rank, None)
    return Factors(left.astype(np.float32), (right @ inverse).astype(np.float32))


def triangular_roots(hessian: Matrix) -> tuple[Wide, Wide]:
    """L and L⁻¹ of a positive semi-definite H = L·Lᵀ, damped by a millionth of its mean diagonal or by what it needs.

    Any root serves: ‖(W - Ŵ)·L‖² is tr((W - Ŵ)·H·(W - Ŵ)ᵀ) for each of them, and Cholesky's costs least.
    """
    wide = hessian.astype(np.float64)
    if not np.isfinite(wide).all():
        raise NumericError("low rank: NaN or infinity in the second moment of a layer's inputs")
    damping = _DAMPING * max(float(np.diag(wide).mean()), 1e-30)
    while True:
        try:
            lower = np.asarray(np.linalg.cholesky(wide + damping * np.eye(len(wide))), dtype=np.float64)
        except np.linalg.LinAlgError:
            damping *= 10
            continue
        return lower, np.asarray(np.linalg.inv(lower), dtype=np.float64)
