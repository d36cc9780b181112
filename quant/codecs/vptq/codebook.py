"""Codebooks of vectors: weighted k-means, nearest centroids, and centroids tuned against a layer's output.

Publisher only. Which vectors and weights there are is left to `vptq_encode`.
"""

from __future__ import annotations

import torch

# Distances computed together: 2^22 of float32, 16 MiB.
_TILE = 1 << 22
_KMEANS_STEPS = 40
_MOVING_STEPS = 30  # of these move idle centroids; the rest settle
# Vectors for each centroid that k-means looks at, and the least number of them.
_SAMPLE_PER_CENTROID, _LEAST_SAMPLE = 96, 1 << 15
# Ridge on the normal equations, relative to their mean diagonal: unused centroids stay where they are.
_RIDGE = 1e-6


def nearest(vectors: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Index of the nearest centroid [k, v] for each vector [n, v]: int64 [n]."""
    offsets = centroids.square().sum(1)
    step = max(1, _TILE // len(centroids))
    tiles = [torch.addmm(offsets, part, centroids.T, alpha=-2).argmin(1) for part in vectors.split(step)]
    return torch.cat(tiles)


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
        chosen = torch.randperm(len(vectors), generator=generator)[:limit].to(vectors.device)
        vectors, weights = vectors[chosen], weights[chosen]
    weights = weights.clamp_min(1e-12)
    start = torch.randperm(len(vectors), generator=generator).repeat(-(-count // len(vectors)))[:count]
    centroids = vectors[start.to(vectors.device)].clone()
    for step in range(steps):
        index = nearest(vectors, centroids)
        mass = torch.zeros(count, device=vectors.device).index_add_(0, index, weights)
        sums = torch.zeros_like(centroids).index_add_(0, index, vectors * weights[:, None])
        centroids = torch.where(mass[:, None] > 0, sums / mass.clamp_min(1e-30)[:, None], centroids)
        if step < moving:
            error = (vectors - centroids[index]).square().sum(1) * weights
            _move_idle(centroids, torch.zeros_like(mass).index_add_(0, index, error), mass)
    return centroids


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

    The rows of a vector are independent, and share one matrix of normal equations.

    Args:
        centroids: float32 [k, v], kept where an index is never used.
        index: int64 [groups, columns].
        target: float32 [groups, v, columns], what the indexed centroids are to add up to.
        hessian: float64 [columns, columns].
        group_weights: float64 [groups].

    Returns:
        float32 [k, v].
    """
    count, columns = len(centroids), index.shape[1]
    normal = torch.zeros(count, count, dtype=torch.float64, device=index.device)
    right = torch.zeros(count, centroids.shape[1], dtype=torch.float64, device=index.device)
    # The output's share of each column, summed where columns share a centroid, by rows and then by columns.
    for group, weight in enumerate(group_weights.tolist()):
        used, own = torch.unique(index[group], return_inverse=True)
        folded = torch.zeros(len(used), columns, dtype=torch.float64, device=index.device)
        folded.index_add_(0, own, hessian, alpha=weight)
        square = torch.zeros(len(used), len(used), dtype=torch.float64, device=index.device)
        normal[used[:, None], used] += square.index_add_(1, own, folded)
        right[used] += folded @ target[group].double().T
    ridge = _RIDGE * float(normal.diagonal().mean()) + 1e-300
    normal.diagonal().add_(ridge)
    right += ridge * centroids.double()
    factor, failed = torch.linalg.cholesky_ex(normal)
    if int(failed):
        return centroids
    return torch.cholesky_solve(right, factor).float()
