"""Spectra of what attention computes with: how many dimensions hold how much of it. Moments come from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgepack.quant.calibration.attention_moments import Kind, LayerMoments, SecondMoments

View = Literal["raw", "centred", "standardised", "raw_first_dropped", "centred_first_dropped",
               "standardised_first_dropped"]  # fmt: skip
VIEWS: tuple[View, ...] = get_args(View)
_DROPPED = "_first_dropped"


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a matrix of second moments.

    Attributes:
        values: float64 [n], falling, none below zero.
    """

    values: NDArray[np.float64]

    @property
    def width(self) -> int:
        """Dimensions in all."""
        return len(self.values)

    @property
    def effective_rank(self) -> float:
        """The exponential of the entropy of the eigenvalues' shares (Roy and Vetterli 2007); 0 of nothing."""
        total = self.values.sum()
        if total <= 0:
            return 0.0
        shares = self.values[self.values > 0] / total
        return float(np.exp(-(shares * np.log(shares)).sum()))

    def kept(self, dimensions: int) -> float:
        """Share of the energy in the `dimensions` strongest directions, 0 to 1; 1 where there is none at all."""
        total = float(self.values.sum())
        return float(self.values[:dimensions].sum()) / total if total > 0 else 1.0

    def dimensions(self, share: float) -> int:
        """The fewest directions that keep `share` (0 to 1) of the energy."""
        total = np.cumsum(self.values)
        if not len(total) or total[-1] <= 0:
            return 0
        return min(int(np.searchsorted(total, share * total[-1] * (1 - 1e-12))) + 1, len(total))


@dataclass(frozen=True)
class HeadsSpectra:
    """One kind of vector in one layer.

    Attributes:
        joint: of all heads side by side, by view.
        heads: the same of each head alone.
    """

    joint: Mapping[View, Spectrum]
    heads: tuple[Mapping[View, Spectrum], ...]

    @property
    def width(self) -> int:
        """Dimensions of all heads together."""
        return self.joint["raw"].width

    def mean_head_dimensions(self, view: View, share: float) -> float:
        """The mean over heads of the directions that keep `share` of a head's energy."""
        return float(np.mean([head[view].dimensions(share) for head in self.heads]))

    def mean_head_rank(self, view: View) -> float:
        """The mean over heads of their effective rank."""
        return float(np.mean([head[view].effective_rank for head in self.heads]))


@dataclass(frozen=True)
class LayerSpectra:
    """One layer's spectra.

    Attributes:
        layer: its number, from 0.
        query_heads, kv_heads: of each.
        rotated: whether positions turn its keys.
        kinds: by kind of vector; queries that share a key's head are taken as vectors of it.
    """

    layer: int
    query_heads: int
    kv_heads: int
    rotated: bool
    kinds: Mapping[Kind, HeadsSpectra]


def spectrum(matrix: NDArray[np.float64]) -> Spectrum:
    """The spectrum of a symmetric matrix [n, n] of second moments."""
    values = np.linalg.eigvalsh(matrix)[::-1]
    return Spectrum(np.maximum(values, 0.0))


def viewed(moments: SecondMoments, view: View) -> NDArray[np.float64]:
    """The matrix [n, n] that a view looks at."""
    seen = moments.without_first if view.endswith(_DROPPED) else moments
    matrix: NDArray[np.float64] = getattr(seen, view.removesuffix(_DROPPED))
    return matrix


def _views(moments: SecondMoments) -> dict[View, Spectrum]:
    return {view: spectrum(viewed(moments, view)) for view in VIEWS}


def layer_spectra(layer: LayerMoments) -> LayerSpectra:
    """Every spectrum of a layer."""
    kinds = {
        kind: HeadsSpectra(
            _views(moments), tuple(_views(moments.of_head(head)) for head in range(moments.heads))
        )
        for kind, moments in layer.moments.items()
    }  # fmt: skip
    return LayerSpectra(layer.layer, layer.query_heads, layer.kv_heads, layer.rotated, kinds)
