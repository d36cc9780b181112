"""How many directions weights and activations really use: spectra and what follows from them. Pure functions.

Walking a model is left to `analysis`, pages to `report`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Wide = NDArray[np.float64]

LEVELS = (0.90, 0.95, 0.99)
MARKS = (9, 22)  # ranks that are often quoted; the cumulative variance there is always reported


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a covariance (squared singular values of a matrix), largest first, and their summary.

    Attributes:
        dimensions: how many eigenvalues there are.
        effective_rank: (Σλ)² / Σλ², the participation ratio.
        k_for: for 90, 95 and 99 % of the variance, the least k that holds it.
        variance_at: for k = 9 and 22, the share of the variance in the k largest.
        curve: (k, share) at up to 64 places, for plots.
    """

    dimensions: int
    effective_rank: float
    k_for: dict[str, int]
    variance_at: dict[str, float]
    curve: tuple[tuple[int, float], ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def spectrum_of(eigenvalues: NDArray[np.floating[Any]]) -> Spectrum:
    """Summarise eigenvalues [n] in any order; tiny negative ones (rounding) count as zero."""
    values = np.sort(np.maximum(eigenvalues.astype(np.float64), 0))[::-1]
    total = max(float(values.sum()), 1e-300)
    share = np.cumsum(values) / total
    count = len(values)
    k_for = {f"{level:.0%}": min(int(np.searchsorted(share, level - 1e-12)) + 1, count) for level in LEVELS}
    at = {str(k): float(share[min(k, count) - 1]) for k in MARKS}
    places = np.unique(np.geomspace(1, count, min(64, count)).round().astype(int))
    rank = total**2 / max(float(np.square(values).sum()), 1e-300)
    return Spectrum(count, rank, k_for, at, tuple((int(k), float(share[k - 1])) for k in places))


def weight_spectrum(weight: NDArray[np.float32], *, centred: bool) -> Spectrum:
    """Spectrum of a matrix [out, in]: squared singular values, with the mean row taken out or not."""
    wide = weight.astype(np.float64)
    if centred:
        wide = wide - wide.mean(axis=0)
    gram = wide @ wide.T if wide.shape[0] < wide.shape[1] else wide.T @ wide
    return spectrum_of(np.linalg.eigvalsh(gram))


def compression_at(out: int, columns: int, k: int) -> float:
    """How many times fewer weights k factors take than the matrix; below 1 they take more."""
    return out * columns / (k * (out + columns))


@dataclass(frozen=True)
class Moments:
    """First and second moments of activations, with and without each sequence's first token.

    Attributes:
        count: tokens.
        mean: E[x] [n].
        second: E[x·xᵀ] [n, n].
    """

    count: int
    mean: Wide
    second: Wide

    def spectrum(self, *, centred: bool = False, standardised: bool = False) -> Spectrum:
        """Spectrum of the second moment, of the covariance, or of the correlation matrix."""
        matrix = self.second - np.outer(self.mean, self.mean) if centred or standardised else self.second
        if standardised:
            deviation = np.sqrt(np.maximum(np.diag(matrix), 1e-30))
            matrix = matrix / deviation / deviation[:, None]
        return spectrum_of(np.linalg.eigvalsh(matrix))


def activation_spectra(everything: Moments, without_first: Moments) -> dict[str, Spectrum]:
    """The spectra that must stand side by side: a mean and a few massive dimensions make the raw one look tiny."""
    return {
        "raw": everything.spectrum(),
        "centred": everything.spectrum(centred=True),
        "standardised": everything.spectrum(standardised=True),
        "first token dropped, raw": without_first.spectrum(),
        "first token dropped, standardised": without_first.spectrum(standardised=True),
    }
