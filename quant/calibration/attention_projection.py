"""Keys and values held in fewer dimensions, as a principal component analysis of them would: what that loses.

Nothing is trained and no memory is saved here: what a cache of k dimensions would give back is put in the place of
what it was given. Bases come from `attention_moments`; whoever runs the model compares its predictions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from edgepack.errors import UnsupportedModelError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgepack.quant.calibration.attention_moments import LayerMoments, SecondMoments
    from edgepack.quant.calibration.attention_watch import AttentionInputs

Part = Literal["k_before", "k", "v"]


@dataclass(frozen=True)
class Basis:
    """The strongest directions of a layer's keys or values, all heads side by side.

    Attributes:
        mean: float32 [n]; it is a constant of the layer, so that a cache need not hold it.
        directions: float32 [n, n], orthonormal columns, the strongest first.
        energies: float64 [n], mean squares along them, none below zero.
    """

    mean: NDArray[np.float32]
    directions: NDArray[np.float32]
    energies: NDArray[np.float64]

    @property
    def width(self) -> int:
        """n: dimensions of all heads together."""
        return len(self.mean)

    def kept(self, dimensions: int) -> float:
        """Share of the energy in the strongest directions, 0 to 1; 1 where there is none at all."""
        total = float(self.energies.sum())
        return float(self.energies[:dimensions].sum()) / total if total > 0 else 1.0


def basis_of(moments: SecondMoments, *, centred: bool = True) -> Basis:
    """The basis of a layer's vectors.

    Args:
        moments: of them.
        centred: whether directions are those of the covariance; else of E[x xᵀ], with no mean.
    """
    values, vectors = np.linalg.eigh(moments.centred if centred else moments.raw)
    mean = moments.mean if centred else np.zeros(moments.width)
    directions = np.ascontiguousarray(vectors[:, ::-1], dtype=np.float32)
    return Basis(mean.astype(np.float32), directions, np.maximum(values[::-1], 0.0))


def layer_bases(layer: LayerMoments, *, centred: bool = True) -> dict[Part, Basis]:
    """The bases of what a cache holds: values, keys, and keys before rotation where they can be seen."""
    parts: tuple[Part, ...] = ("k_before", "k", "v")
    return {part: basis_of(layer.moments[part], centred=centred) for part in parts if part in layer.moments}


def check_dimensions(dimensions: int, bases: Mapping[int, Mapping[Part, Basis]], parts: tuple[Part, ...]) -> None:
    """Check that every layer has `dimensions` to keep.

    Raises:
        UsageError: fewer than 1, or more than the keys or values of some layer have; the text names it.
    """
    if dimensions < 1:
        raise UsageError(f"dimensions of a cache: expected at least 1, got {dimensions}")
    for layer, known in bases.items():
        for part in parts:
            if part in known and dimensions > known[part].width:
                raise UsageError(
                    f"dimensions of a cache: {dimensions}, but the {'values' if part == 'v' else 'keys'} of layer "
                    f"{layer} have {known[part].width} in all heads together"
                )


class ProjectedCache:
    """Puts in the place of keys and values what is left of them in `dimensions` directions of all heads together.

    A visitor for `attention_watch.watched_attention`.

    Args:
        bases: layer → part → basis.
        dimensions: that are kept of each part.
        parts: what is projected; keys either before rotation or after it.

    Raises:
        UsageError: as `check_dimensions`.
        UnsupportedModelError: a part of some layer was not seen, as keys before rotation of latent attention are not.
    """

    def __init__(self, bases: Mapping[int, Mapping[Part, Basis]], dimensions: int, parts: tuple[Part, ...]) -> None:
        check_dimensions(dimensions, bases, parts)
        for layer, known in bases.items():
            if unseen := sorted(set(parts) - set(known)):
                raise UnsupportedModelError(f"layer {layer}: its attention does not show '{unseen[0]}'")
        self._parts = parts
        self._kept: dict[tuple[int, Part], tuple[torch.Tensor, torch.Tensor]] = {
            (layer, part): (
                torch.from_numpy(basis.mean), torch.from_numpy(np.ascontiguousarray(basis.directions[:, :dimensions])),
            )
            for layer, known in bases.items()
            for part, basis in known.items()
            if part in parts
        }  # fmt: skip

    def before_rotation(self, layer: int, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys that are projected before positions turn them.

        Raises:
            UnsupportedModelError: the family turns a part of each head, or heads in another order.
        """
        if "k_before" not in self._parts:
            return q, k
        if k.shape[1] * k.shape[-1] != len(self._kept[layer, "k_before"][0]):
            raise UnsupportedModelError(f"layer {layer}: its family turns keys where they cannot be projected before")
        return q, self._project(layer, "k_before", k)

    def attention(self, inputs: AttentionInputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Keys and values that are projected as a cache keeps them."""
        turned: Part = "k" if "k" in self._parts else "k_before"
        here = turned in self._parts and (turned == "k" or not inputs.rotated)  # else it was projected before
        k = self._project(inputs.layer, turned, inputs.k) if here else inputs.k
        v = self._project(inputs.layer, "v", inputs.v) if "v" in self._parts else inputs.v
        return inputs.q, k, v

    def _project(self, layer: int, part: Part, tensor: torch.Tensor) -> torch.Tensor:
        """[batch, heads, length, head] → what its projection gives back, in the same shape."""
        mean, kept = self._kept[layer, part]
        batch, heads, length, head = tensor.shape
        rows = tensor.transpose(1, 2).reshape(batch, length, heads * head) - mean
        back = rows @ kept @ kept.T + mean
        return back.reshape(batch, length, heads, head).transpose(1, 2)
