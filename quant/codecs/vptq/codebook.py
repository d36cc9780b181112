"""Codebooks of vectors: weighted k-means, nearest centroids, and centroids tuned against a layer's output.

The searches and sums are compiled kernels; the same for any processor.

Publisher only. Which vectors and weights there are is left to `vptq_encode`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgepack.kernels.native import library, pointer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KMEANS_STEPS = 40
_MOVING_STEPS = 30  # of these move idle centroids; the rest settle
# Vectors for each centroid that k-means looks at, and the least number of them.
_SAMPLE_PER_CENTROID, _LEAST_SAMPLE = 96, 1 << 15
# Vectors for each centroid that tuning looks at: more change nothing that a sweep would keep.
_TUNED_PER_CENTROID = 256
# Centroids a dimension, and as many times more, from which k-means takes vectors leaf by leaf of a k-d tree: with
# fewer a leaf is as wide as what centroids are apart, and no centroid can be left out.
_LEAVES_FROM = 4
# Ridge on the normal equations, relative to their mean diagonal: unused centroids stay where they are.
_RIDGE = 1e-6


def searchable(centroids: torch.Tensor) -> NDArray[np.float32]:
    """Centroids [k, v] as the kernels search them: float32 [k, v + 1], the last number of each |c|² / 2."""
    book = centroids.detach().float().numpy()
    halves = 0.5 * np.square(book, dtype=np.float64).sum(1, keepdims=True)
    return np.ascontiguousarray(np.concatenate([book, halves.astype(np.float32)], axis=1))


def nearest(vectors: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Index of the nearest centroid [k, v] for each vector [n, v], the first of equals: int64 [n]."""
    found = _search(np.ascontiguousarray(vectors.detach().float().numpy()), searchable(centroids))
    return torch.from_numpy(found.astype(np.int64))


def _search(vectors: NDArray[np.float32], book: NDArray[np.float32]) -> NDArray[np.int32]:
    found = np.empty(len(vectors), dtype=np.int32)
    library().edgepack_nearest(
        pointer(vectors, "const float *"), len(vectors), vectors.shape[1], pointer(book, "const float *"), len(book),
        pointer(found, "int32_t *"),
    )  # fmt: skip
    return found


def _search_leaves(vectors: NDArray[np.float32], book: NDArray[np.float32]) -> NDArray[np.int32]:
    """As `_search`, of vectors in the order of leaves."""
    found, scratch = np.empty(len(vectors), dtype=np.int32), np.empty(book.size + len(book), dtype=np.float32)
    library().edgepack_nearest_leaves(
        pointer(vectors, "const float *"), len(vectors), vectors.shape[1], pointer(book, "const float *"), len(book),
        pointer(scratch, "float *"), pointer(found, "int32_t *"),
    )  # fmt: skip
    return found


def kmeans(
    vectors: torch.Tensor, weights: torch.Tensor, count: int, steps: int = _KMEANS_STEPS, moving: int = _MOVING_STEPS
) -> torch.Tensor:
    """`count` centroids of weighted vectors by Lloyd's method; the same for the same input.

    Args:
        vectors: float32 [n, v].
        weights: float32 [n], not negative.
        count: k; with fewer distinct vectors than that, some centroids are equal.
        steps: of Lloyd's method.
        moving: the first of these, which move idle centroids too.

    Returns:
        float32 [k, v].
    """
    generator = torch.Generator().manual_seed(count)
    limit = max(_LEAST_SAMPLE, _SAMPLE_PER_CENTROID * count)
    if len(vectors) > limit:
        chosen = torch.randperm(len(vectors), generator=generator)[:limit]
        vectors, weights = vectors[chosen], weights[chosen]
    start = torch.randperm(len(vectors), generator=generator).repeat(-(-count // len(vectors)))[:count]
    centroids = vectors[start].clone()
    array, shares = np.ascontiguousarray(vectors.numpy()), weights.clamp_min(1e-12).numpy()
    if in_leaves := count >= _LEAVES_FROM ** (vectors.shape[1] + 1):
        order = _leaf_order(array)
        array, shares = array[order], shares[order]
    shares = np.ascontiguousarray(shares)
    for step in range(steps):
        centroids = _lloyd(array, shares, centroids, step < moving, in_leaves)
    return centroids


def _leaf_order(vectors: NDArray[np.float32]) -> NDArray[np.int32]:
    """An order in which vectors that follow one another lie close together, so that a few centroids serve them."""
    order = np.empty(len(vectors), dtype=np.int32)
    library().edgepack_leaf_order(
        pointer(vectors, "const float *"), len(vectors), vectors.shape[1], pointer(order, "int32_t *")
    )
    return order


def _lloyd(
    vectors: NDArray[np.float32],
    weights: NDArray[np.float32],
    centroids: torch.Tensor,
    moving: bool,
    in_leaves: bool,
) -> torch.Tensor:
    """One step of Lloyd's method, vectors in the order of leaves or in any; does not modify `centroids`."""
    book = searchable(centroids)
    index = (_search_leaves if in_leaves else _search)(vectors, book)
    mass, distortion = np.empty(len(book)), np.empty(len(book))
    sums = np.empty(centroids.shape, dtype=np.float64)
    library().edgepack_centroid_sums(
        pointer(vectors, "const float *"), pointer(weights, "const float *"), len(vectors), vectors.shape[1],
        pointer(book, "const float *"), len(book), pointer(index, "const int32_t *"), pointer(mass, "double *"),
        pointer(sums, "double *"), pointer(distortion, "double *"),
    )  # fmt: skip
    before: NDArray[Any] = centroids.double().numpy()
    after = np.where(mass[:, None] > 0, sums / np.maximum(mass, 1e-30)[:, None], before)
    moved = torch.from_numpy(after.astype(np.float32))
    if moving:  # about the mean, a cell's squares are less by those of the step
        distortion = np.maximum(distortion - mass * np.square(after - before).sum(1), 0)
        _move_idle(moved, torch.from_numpy(distortion).float(), torch.from_numpy(mass).float())
    return moved


def _move_idle(centroids: torch.Tensor, distortion: torch.Tensor, mass: torch.Tensor) -> None:
    """Move the centroids with the least distortion beside those with the most: the best codebook has it equal.

    Source of the criterion: Gersho, Asymptotically optimal block quantization (1979).
    """
    order = distortion.argsort(stable=True)
    moved = max(1, len(order) // 32)
    idle, busy = order[:moved], order.flip(0)[:moved]
    # Only where it pays: joining the idle cell to another costs about what it has, splitting the busy one gains more.
    pays = distortion[busy] > 4 * distortion[idle]
    idle, busy = idle[pays], busy[pays]
    spread = (distortion[busy] / mass[busy].clamp_min(1e-30) / centroids.shape[1]).sqrt()
    centroids[idle] = centroids[busy] + 0.5 * spread[:, None]
    centroids[busy] -= 0.5 * spread[:, None]


def tune(
    centroids: torch.Tensor,
    index: torch.Tensor,
    target: torch.Tensor,
    hessian: torch.Tensor,
    group_weights: torch.Tensor,
) -> torch.Tensor:
    """Centroids with the least Σ_g a_g·(w_g - Ŵ_g)·H·(w_g - Ŵ_g)ᵀ for fixed indices, in closed form.

    The rows of a vector are independent, and share one matrix of normal equations. Of many groups some are looked at.

    Args:
        centroids: float32 [k, v], kept where an index is never used.
        index: int64 [groups, columns].
        target: float32 [groups, v, columns], what the indexed centroids are to add up to.
        hessian: float32 [columns, columns].
        group_weights: float64 [groups].

    Returns:
        float32 [k, v].
    """
    count, columns = len(centroids), index.shape[1]
    some = max(1, min(len(index), _TUNED_PER_CENTROID * count // columns))
    chosen = torch.linspace(0, len(index) - 1, some).round().long()
    index, group_weights = index[chosen], group_weights[chosen].double()
    normal = _normal_equations(index, group_weights, hessian, count)
    outputs = target[chosen] @ hessian * group_weights.float()[:, None, None]  # [groups, v, columns]
    right = torch.zeros(count, centroids.shape[1], dtype=torch.float64)
    right.index_add_(0, index.reshape(-1), outputs.transpose(1, 2).reshape(-1, centroids.shape[1]).double())
    ridge = _RIDGE * float(normal.diagonal().mean()) + 1e-300
    normal.diagonal().add_(ridge)
    right += ridge * centroids.double()
    factor, failed = torch.linalg.cholesky_ex(normal)
    if int(failed):
        return centroids
    return torch.cholesky_solve(right, factor).float()


def _normal_equations(index: torch.Tensor, weights: torch.Tensor, hessian: torch.Tensor, count: int) -> torch.Tensor:
    """Σ_g a_g Σ H[i, j] over columns i and j of each pair of centroids: float64 [k, k]."""
    normal = torch.zeros(count, count, dtype=torch.float64)
    places = np.ascontiguousarray(index.numpy().astype(np.int32))
    library().edgepack_normal_equations(
        pointer(places, "const int32_t *"), places.shape[0], places.shape[1],
        pointer(weights.contiguous().numpy(), "const double *"),
        pointer(hessian.contiguous().numpy(), "const float *"), count, pointer(normal.numpy(), "double *"),
    )  # fmt: skip
    return normal
