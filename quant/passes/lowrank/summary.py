"""What the spectra of all matrices together say: how many directions, which rank, and what that rank would save.

Pure functions of spectra that `analysis` has measured.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.quant.passes.lowrank.spectrum import Spectrum

RANKS = (8, 16, 32, 64, 128, 256, 512)
_FACTOR_BYTES = 2  # a factor's weight as F16
_LEVEL = "95%"


@dataclass(frozen=True)
class RankSize:
    """Bytes of every matrix as factors of rank k in F16.

    Attributes:
        k: of each matrix, or its full rank where that is less.
        bytes: U·S and V of all matrices.
        ratio: to the same matrices in F16; above 1 the factors are larger.
        kept: the mean share of the centred variance that rank k keeps, 0 to 1.
    """

    k: int
    bytes: int
    ratio: float
    kept: float


@dataclass(frozen=True)
class Summary:
    """All matrices together; degrees of freedom are (Σλ)² / Σλ² of the centred spectrum.

    Attributes:
        matrices: how many.
        mean_df, median_df: degrees of freedom.
        mean_share, median_share: the same over full rank, 0 to 1.
        recommended_k: the least rank that keeps 95 % of the centred variance in half of the matrices.
        saves: whether factors of that rank take fewer bytes than the matrices.
        dense_bytes: of the matrices in F16.
        sizes: at usual ranks and at the recommended one.
    """

    matrices: int
    mean_df: float
    median_df: float
    mean_share: float
    median_share: float
    recommended_k: int
    saves: bool
    dense_bytes: int
    sizes: tuple[RankSize, ...]

    @property
    def meaning(self) -> str:
        """What the recommended rank means, for people."""
        at = next(size for size in self.sizes if size.k == self.recommended_k)
        verdict = (
            f"factors of it take {100 * at.ratio:.0f} % of the matrices' bytes"
            if self.saves
            else f"factors of it take {at.ratio:.2f} times the matrices' bytes: low rank saves nothing on this model"
        )
        return f"k = {self.recommended_k} keeps 95 % of the centred variance in half of the matrices; {verdict}"

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "meaning": self.meaning}


def summarise(matrices: Sequence[tuple[tuple[int, int], Spectrum]]) -> Summary | None:
    """The summary of (shape, centred spectrum) of every matrix; None of none."""
    if not matrices:
        return None
    found = [spectrum.effective_rank for _shape, spectrum in matrices]
    shares = [spectrum.effective_rank / max(1, spectrum.dimensions) for _shape, spectrum in matrices]
    k = max(1, round(median(spectrum.k_for[_LEVEL] for _shape, spectrum in matrices)))
    widest = max(spectrum.dimensions for _shape, spectrum in matrices)
    ranks = sorted({*(rank for rank in RANKS if rank < widest), k})
    dense = _FACTOR_BYTES * sum(out * columns for (out, columns), _spectrum in matrices)
    sizes = tuple(_size(matrices, rank, dense) for rank in ranks)
    saves = next(size for size in sizes if size.k == k).ratio < 1
    return Summary(
        len(matrices), mean(found), median(found), mean(shares), median(shares), k, saves, dense, sizes
    )  # fmt: skip


def _size(matrices: Sequence[tuple[tuple[int, int], Spectrum]], rank: int, dense: int) -> RankSize:
    count = sum(min(rank, spectrum.dimensions) * sum(shape) for shape, spectrum in matrices) * _FACTOR_BYTES
    kept = mean(_kept(spectrum, rank) for _shape, spectrum in matrices)
    return RankSize(rank, count, count / dense, kept)


def _kept(spectrum: Spectrum, rank: int) -> float:
    """The share of the variance in the first `rank` directions, linear between the curve's places."""
    before = (0, 0.0)
    for k, share in spectrum.curve:
        if k >= rank:
            return before[1] + (share - before[1]) * (rank - before[0]) / (k - before[0])
        before = (k, share)
    return 1.0
