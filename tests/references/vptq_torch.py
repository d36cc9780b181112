"""VPTQ's k-means and the rounding of a column's vectors in torch: the kernels' reference."""

from __future__ import annotations

from typing import Any

import torch

# Distances computed together: 2^22 of float32, 16 MiB.
_TILE = 1 << 22


def nearest(vectors: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Index of the nearest centroid [k, v] for each vector [n, v]: int64 [n]."""
    offsets = centroids.square().sum(1)
    step = max(1, _TILE // len(centroids))
    tiles = [torch.addmm(offsets, part, centroids.T, alpha=-2).argmin(1) for part in vectors.split(step)]
    return torch.cat(tiles)


class VectorRounder:
    """Rounds a column's vectors to their nearest centroids and remembers which, and what was left."""

    group = 1

    def __init__(self, books: Any, outlier: torch.Tensor, groups: int) -> None:
        self._books, self._outlier = books, outlier
        self.index = torch.zeros(groups, len(outlier), dtype=torch.int64, device=outlier.device)
        self.residual_index = torch.zeros_like(self.index)
        self.left = torch.zeros(groups, len(outlier), books.main.shape[1], device=outlier.device)

    def start_group(self, start: int, weights: torch.Tensor) -> None:
        """Nothing is prepared."""

    def round(self, column: int, values: torch.Tensor) -> torch.Tensor:
        """As `ColumnRounder.round`."""
        vectors = values.reshape(-1, self._books.main.shape[1])
        is_outlier = bool(self._outlier[column])
        book = self._books.outlier if is_outlier and self._books.outlier is not None else self._books.main
        self.index[:, column] = nearest(vectors, book)
        rounded = book[self.index[:, column]]
        self.left[:, column] = vectors - rounded
        if self._books.residual is not None and not is_outlier:
            self.residual_index[:, column] = nearest(vectors - rounded, self._books.residual)
            rounded = rounded + self._books.residual[self.residual_index[:, column]]
        return rounded.reshape(-1)
