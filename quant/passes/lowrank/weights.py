"""Replaces every linear layer inside the blocks by low-rank factors: multiplied back, or kept apart as an adapter.

The factorisations are in `factors`; writing an adapter is left to `export`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from edgepack.errors import RecipeError
from edgepack.model import OverriddenTensors
from edgepack.quant.calibration.blocks import is_transposed
from edgepack.quant.passes.lowrank.factors import Factors, centred_svd, whitened_svd
from edgepack.quant.passes.lowrank.stored import read_factors, write_factors
from edgepack.quant.passes.run import PassOutcome, VisitingWalk, change_blocks, change_weights
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from edgepack.model import Checkpoint
    from edgepack.quant.calibration.blocks import Block
    from edgepack.quant.calibration.sweep import BlockVisit
    from edgepack.quant.passes.run import Figure, PassRun


@dataclass(frozen=True)
class LowRankSettings:
    """How layers are factorised; exactly one of `rank` and `variance` is given.

    Attributes:
        method: `svd` (centred, of the weights alone), `whitened` (of the outputs), or `stored` (read from a file).
        rank: k of every layer.
        variance: the share to keep, 0 to 1; k differs from layer to layer.
        apart: keep the factors as an adapter on a base that holds only the mean row.
    """

    method: Literal["svd", "whitened", "stored"]
    rank: int | None = None
    variance: float | None = None
    apart: bool = False


def factorise(checkpoint: Checkpoint, settings: LowRankSettings, run: PassRun) -> PassOutcome:
    """Factorise all linears inside the blocks. Does not modify `checkpoint`.

    With `run.factors` the factors are stored there, or, with method `stored`, read from there.

    Raises:
        CalibrationError: `whitened` without tokens.
        RecipeError: `stored` without a file, or one that does not fit the model.
        NumericError: NaN or infinity; the text names the layer.
    """
    walk = _Walk(settings, _stored(settings, run), keeps=settings.apart or run.factors is not None)
    if settings.method == "whitened":
        changed = change_blocks(checkpoint, run, walk, "lowrank")
    else:
        changed = change_weights(checkpoint, run, walk.without_tokens, "lowrank", walk)
    if settings.apart:
        changed = replace(checkpoint, tensors=OverriddenTensors(checkpoint.tensors, walk.bases))
    return PassOutcome(changed, walk.figures(), tuple(_notes(settings, run, walk)), low_rank=walk.apart)


def _stored(settings: LowRankSettings, run: PassRun) -> Mapping[str, Factors] | None:
    """The factors to take, or None where they are computed."""
    if settings.method != "stored":
        return None
    if run.factors is None:
        raise RecipeError("lowrank: method 'stored' reads factors: expected --factors FILE")
    return read_factors(run.factors)


def _notes(settings: LowRankSettings, run: PassRun, walk: _Walk) -> Iterator[str]:
    """Store the factors where that is asked for; a line for it, and one for what merging does not save."""
    if run.factors is not None and settings.method != "stored":
        about = {"method": settings.method, "rank": settings.rank, "variance": settings.variance}
        size = write_factors(run.factors, walk.found, about)
        yield f"lowrank: factors of {len(walk.found)} matrices, {format_size(size)}, are stored (--factors)"
    if not settings.apart:
        yield (
            "lowrank: the factors are multiplied back: the file has as many weights as before and saves no bytes;"
            " output=adapter keeps them apart, --factors stores them"
        )


def _fitting(stored: Mapping[str, Factors], name: str, shape: tuple[int, ...]) -> Factors:
    """The stored factors of a matrix; raises RecipeError where there are none of its shape."""
    found = stored.get(name)
    if found is None or (found.left.shape[0], found.right.shape[1]) != tuple(shape):
        got = "none" if found is None else f"{[found.left.shape[0], found.right.shape[1]]}"
        raise RecipeError(f"--factors: '{name}': expected factors of {list(shape)}, got {got}")
    return found


class _Walk(VisitingWalk):
    """Factorises one block after the other and counts."""

    kept = ("ranks", "shares", "before", "after")

    def __init__(self, settings: LowRankSettings, stored: Mapping[str, Factors] | None, *, keeps: bool) -> None:
        self.settings, self._stored, self._keeps = settings, stored, keeps
        self.found: dict[str, Factors] = {}  # where they are stored or kept apart
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
        if self._stored is not None:
            found = _fitting(self._stored, name, weight.shape)
        elif hessian is None:
            found = centred_svd(weight, rank=rank, variance=variance)
        else:
            found = whitened_svd(weight, hessian, rank=rank, variance=variance)
        self._count(weight, found)
        block.set_weight(name, torch.from_numpy(found.dense()))
        if self._keeps:
            mean = np.zeros(1, np.float32) if found.mean is None else found.mean
            flip = np.array(is_transposed(block.linears[name]))  # as the checkpoint holds it
            parts = {"left": found.left, "right": found.right, "mean": mean, "flip": flip}
            self._last |= {f"{part}:{name}": array for part, array in parts.items()}
            self._keep(name, parts)

    def _keep(self, name: str, parts: Mapping[str, NDArray[Any]]) -> None:
        left, right, mean = parts["left"], parts["right"], parts["mean"]
        self.found[name] = Factors(left, right, mean if len(mean) == right.shape[1] else None)
        if not self.settings.apart:
            return
        base = np.broadcast_to(parts["mean"][None], (len(left), right.shape[1]))
        self.bases[name] = base.T if parts["flip"] else base
        self.apart[name] = (right.T, left.T) if parts["flip"] else (left, right)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As `Walk.arrays`: the factors of the last block, where they are kept."""
        return dict(self._last)

    def take(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """As `Walk.take`."""
        for name in {key.split(":", 1)[1] for key in arrays}:
            self._keep(name, {part: arrays[f"{part}:{name}"] for part in ("left", "right", "mean", "flip")})

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
