"""Replaces every linear layer inside the blocks by low-rank factors: multiplied back, or kept apart as an adapter.

The factorisations are in `factors`; writing an adapter is left to `export`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from edgepack.model import OverriddenTensors
from edgepack.quant.calibration.blocks import is_transposed
from edgepack.quant.passes.lowrank.factors import Factors, centred_svd, whitened_svd
from edgepack.quant.passes.run import PassOutcome, change_blocks, change_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.model import Checkpoint
    from edgepack.quant.calibration.blocks import Block
    from edgepack.quant.calibration.sweep import BlockVisit
    from edgepack.quant.passes.run import Figure, PassRun


@dataclass(frozen=True)
class LowRankSettings:
    """How layers are factorised; exactly one of `rank` and `variance` is given.

    Attributes:
        method: `svd` (centred, of the weights alone) or `whitened` (of the outputs).
        rank: k of every layer.
        variance: the share to keep, 0 to 1; k differs from layer to layer.
        apart: keep the factors as an adapter on a base that holds only the mean row.
    """

    method: Literal["svd", "whitened"]
    rank: int | None = None
    variance: float | None = None
    apart: bool = False


def factorise(checkpoint: Checkpoint, settings: LowRankSettings, run: PassRun) -> PassOutcome:
    """Factorise all linears inside the blocks. Does not modify `checkpoint`.

    Raises:
        CalibrationError: `whitened` without tokens.
        NumericError: NaN or infinity; the text names the layer.
    """
    walk = _Walk(settings)
    if settings.method == "whitened":
        changed = change_blocks(checkpoint, run, walk, "lowrank")
    else:
        changed = change_weights(checkpoint, run, walk.without_tokens, "lowrank")
    if settings.apart:
        changed = replace(checkpoint, tensors=OverriddenTensors(checkpoint.tensors, walk.bases))
    return PassOutcome(changed, walk.figures(), low_rank=walk.apart)


class _Walk:
    """Factorises one block after the other and counts."""

    def __init__(self, settings: LowRankSettings) -> None:
        self.settings = settings
        self.apart: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
        self.bases: dict[str, NDArray[np.float32]] = {}  # what stays in the model when factors are kept apart
        self._ranks: list[int] = []
        self._kept: list[float] = []
        self._before = self._after = 0

    def __call__(self, visit: BlockVisit) -> list[str]:
        names = list(visit.block.linears)
        statistics, _ = visit.observe(names, True)
        for name in names:
            self.replace(visit.block, name, statistics[name].hessian)
        return names

    def without_tokens(self, block: Block) -> list[str]:
        """As a call, of the weights alone."""
        for name in block.linears:
            self.replace(block, name, None)
        return list(block.linears)

    def replace(self, block: Block, name: str, hessian: NDArray[np.float32] | None) -> None:
        """Put the factorised weight in the place of weight `name`; with `apart`, keep its factors too."""
        weight = block.weight(name).cpu().numpy()
        rank, variance = self.settings.rank, self.settings.variance
        if hessian is None:
            found = centred_svd(weight, rank=rank, variance=variance)
        else:
            found = whitened_svd(weight, hessian, rank=rank, variance=variance)
        self._count(weight, found)
        block.set_weight(name, torch.from_numpy(found.dense()))
        if self.settings.apart:
            base = np.zeros((1, 1), np.float32) if found.mean is None else found.mean[None]
            base = np.broadcast_to(base, weight.shape)
            flip = is_transposed(block.linears[name])  # as the checkpoint holds it
            self.bases[name] = base.T if flip else base
            self.apart[name] = (found.right.T, found.left.T) if flip else (found.left, found.right)

    def _count(self, weight: NDArray[np.float32], found: Factors) -> None:
        centre = weight if found.mean is None else weight - found.mean
        energy = float(np.square(centre, dtype=np.float64).sum())
        lost = float(np.square(weight - found.dense(), dtype=np.float64).sum())
        self._kept.append(1 - lost / max(energy, 1e-300))
        self._ranks.append(found.rank)
        self._before += weight.size
        self._after += found.rank * sum(weight.shape)

    def figures(self) -> dict[str, Figure]:
        """What was measured: ranks, the share of the weights' variance that is kept, factors' size."""
        return {
            "least_rank": min(self._ranks),
            "greatest_rank": max(self._ranks),
            "kept_variance": float(np.mean(self._kept)),
            "factor_weights_ratio": self._after / self._before,
        }
