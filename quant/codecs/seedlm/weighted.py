"""Q and R of single pairs of block and seed whose columns weigh differently. Publisher only.

A search of every seed makes them once for all blocks of some columns (`basis`); one that measures a few seeds for each
block makes them here, pair by pair.
"""

from __future__ import annotations

import torch

# Pairs at a time: their arrays (some 100 numbers each) stay in a second-level cache.
_PAIRS = 2048
# Of a column's norm: one of which less is left by those before it counts as a combination of them.
_DEPENDENT = 1e-4


def weighted_factors(matrices: torch.Tensor, roots: torch.Tensor, count: int) -> torch.Tensor:
    """`rounding.factors` of diag(root)·U(s) = Q·R for every pair; a column that depends on others is not used.

    Args:
        matrices: U(s), float32 [n, C·P] row by row.
        roots: roots of the columns' weights, float32 [n, C].
        count: P.
    """
    parts = zip(matrices.split(_PAIRS), roots.split(_PAIRS), strict=True)
    return torch.cat([_factorised(part, own, count) for part, own in parts])


def _factorised(matrices: torch.Tensor, roots: torch.Tensor, count: int) -> torch.Tensor:
    """Gram-Schmidt with the pairs along the last axis, each column orthogonalised twice."""
    lanes = roots.shape[1]
    u = matrices.T.reshape(lanes, count, -1) * roots.T[:, None]
    r = torch.zeros(count, count, u.shape[2], device=u.device)
    for p in range(count):
        column, before = u[:, p], torch.linalg.vector_norm(u[:, p], dim=0)
        for _ in range(2):
            for i in range(p):
                inner = (u[:, i] * column).sum(0)
                r[i, p] += inner
                column -= u[:, i] * inner
        norm = torch.linalg.vector_norm(column, dim=0)
        used = norm > _DEPENDENT * before
        r[p, p] = torch.where(used, norm, 1.0)
        column *= torch.where(used, 1 / r[p, p], 0.0)
    upper = torch.triu_indices(count, count, device=u.device)
    return torch.cat([u.flatten(0, 1), r[upper[0], upper[1]]]).T
