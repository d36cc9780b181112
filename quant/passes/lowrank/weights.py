"""Replaces every linear layer inside the blocks by low-rank factors: multiplied back, or kept apart as an adapter.

The factorisations are in `factors`; writing an adapter is left to `export`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from edgepack.model import OverriddenTensors
from edgepack.quant.calibration.blocks import is_transposed
from edgepack.quant.passes.lowrank.factors import Factors, centred_svd, whitened_svd
from edgepack.quant.passes.run import PassOutcome, VisitingWalk, change_blocks, change_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

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
        changed = change_weights(checkpoint, run, walk.without_tokens, "lowrank", walk)
    if settings.apart:
        changed = replace(checkpoint, tensors=OverriddenTensors(checkpoint.tensors, walk.bases))
    return PassOutcome(changed, walk.figures(), low_rank=walk.apart)


class _Walk(VisitingWalk):
    """Factorises one block after the other and counts."""

    kept = ("ranks", "shares", "before", "after")

    def __init__(self, settings: LowRankSettings) -> None:
        self.settings = settings
        self.apart: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
        self.bases: dict[str, NDArray[np.float32]] = {}  # what stays in the model when factors are kept apart
        self.ranks: list[int] = []
        self.shares: list[float] = []  # of each weight's variance that is kept
        self.before = self.after = 0
        self._last: dict[str, NDArray[np.float32]] = {}  # what is kept apart of the last block, by kind and name

    def __call__(self, visit: BlockVisit) -> list[str]:
        names = list(visit.block.linears)
        self._last = {}
        statistics, _ = visit.observe(names, True)
        for name in names:
            self.replace(visit.block, name, statistics[name].hessian)
        return names

    def without_tokens(self, block: Block) -> list[str]:
        """As a call, of the weights alone."""
        self._last = {}
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
            mean = np.zeros(1, np.float32) if found.mean is None else found.mean
            flip = np.array(is_transposed(block.linears[name]))  # as the checkpoint holds it
            parts = {"left": found.left, "right": found.right, "mean": mean, "flip": flip}
            self._last |= {f"{part}:{name}": array for part, array in parts.items()}
            self._keep_apart(name, parts)

    def _keep_apart(self, name: str, parts: Mapping[str, NDArray[Any]]) -> None:
        left, right = parts["left"], parts["right"]
        base = np.broadcast_to(parts["mean"][None], (len(left), right.shape[1]))
        self.bases[name] = base.T if parts["flip"] else base
        self.apart[name] = (right.T, left.T) if parts["flip"] else (left, right)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As `Walk.arrays`: the factors of the last block, where they are kept apart."""
        return dict(self._last)

    def take(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """As `Walk.take`."""
        for name in {key.split(":", 1)[1] for key in arrays}:
            self._keep_apart(name, {part: arrays[f"{part}:{name}"] for part in ("left", "right", "mean", "flip")})

    def _count(self, weight: NDArray[np.float32], found: Factors) -> None:
        centre = weight if found.mean is None else weight - found.mean
        energy = float(np.square(centre, dtype=np.float64).sum())
        lost = float(np.square(weight - found.dense(), dtype=np.float64).sum())
        self.shares.append(1 - lost / max(energy, 1e-300))
        self.ranks.append(found.rank)
        self.before += weight.size
        self.after += found.rank * sum(weight.shape)

    def figures(self) -> dict[str, Figure]:
        """What was measured: ranks, the share of the weights' variance that is kept, factors' size."""
        return {
            "least_rank": min(self.ranks),
            "greatest_rank": max(self.ranks),
            "kept_variance": float(np.mean(self.shares)),
            "factor_weights_ratio": self.after / self.before,
        }
