"""Prunes every linear layer of a model to a sparsity, block by block; masks are left to `masks`.

GGUF is dense: zeros save bytes only in an archive, and only where the type can hold a zero exactly
(`keeps_zeros`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from edgepack.gguf.types import GGMLType
from edgepack.quant.feedback import DAMPING, damping_note
from edgepack.quant.passes.prune.allocation import allocate_by_outliers
from edgepack.quant.passes.prune.masks import magnitude_mask, sparsegpt, wanda_mask
from edgepack.quant.passes.run import PassOutcome, VisitingWalk, change_blocks, change_weights, few

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from edgepack.model import Checkpoint
    from edgepack.quant.calibration.blocks import Block
    from edgepack.quant.calibration.statistics import LinearStatistics
    from edgepack.quant.calibration.sweep import BlockVisit
    from edgepack.quant.passes.prune.masks import Pattern
    from edgepack.quant.passes.run import Figure, PassRun

LARGE = 1_000_000_000
Method = Literal["magnitude", "wanda", "sparsegpt"]
# Types whose grids contain zero whatever the scale; a test holds this against ggml's own quantisers.
KEEPS_ZEROS = frozenset({
    GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.Q8_0, GGMLType.Q6_K, GGMLType.Q3_K, GGMLType.Q5_0,
    GGMLType.Q4_0, GGMLType.TQ1_0, GGMLType.TQ2_0, GGMLType.MXFP4, GGMLType.NVFP4, GGMLType.Q2_0,
})  # fmt: skip


@dataclass(frozen=True)
class PruneSettings:
    """How a model is pruned.

    Attributes:
        method: `magnitude`, `wanda` or `sparsegpt`.
        pattern: the share of weights that go and their arrangement.
        allocation: `uniform`, or `owl` for less pruning where layers have more outliers.
    """

    method: Method
    pattern: Pattern
    allocation: Literal["uniform", "owl"] = "uniform"


def prune_weights(checkpoint: Checkpoint, settings: PruneSettings, run: PassRun) -> PassOutcome:
    """Prune all linear layers inside the blocks; embedding and output matrix stay. Does not modify `checkpoint`.

    Raises:
        CalibrationError: no tokens, for a method that looks at activations.
        NumericError: NaN or infinity; the text names the layer.
    """
    sparsities: list[float] | None = None
    if settings.allocation == "owl":
        sparsities = allocate_by_outliers(checkpoint, settings.pattern.sparsity, run)
    pruner = _Pruner(settings, sparsities)
    if settings.method == "magnitude":
        changed = change_weights(checkpoint, run, pruner.by_magnitude, "prune", pruner)
    else:
        changed = change_blocks(checkpoint, run, pruner, "prune")
    figures: dict[str, Figure] = {
        "sparsity": pruner.zeros / max(pruner.weights, 1),
        "zeros": pruner.zeros,
        "weights": pruner.weights,
    }
    if settings.method != "sparsegpt" and not settings.pattern.group:
        figures["compare"] = settings.pattern.compare
    if sparsities is not None:
        figures |= {"least_block_sparsity": min(sparsities), "greatest_block_sparsity": max(sparsities)}
    if pruner.damping:
        figures["damping"] = pruner.damping
    return PassOutcome(changed, figures, tuple(few(pruner.damped)))


def comparison(checkpoint: Checkpoint) -> Literal["row", "layer"]:
    """Which scores compete where nobody says: those of a row in large models, as Wanda's authors found best at 7B.

    In models with fewer than `LARGE` parameters, those of a whole matrix: better on those that we measured
    (docs/passes.md). Nothing was measured in between.
    """
    parameters = checkpoint.weight_count
    return "row" if parameters >= LARGE else "layer"


def lost_zeros(types: Iterable[GGMLType]) -> list[str]:
    """A line for each of the file's tensor types that cannot hold exact zeros."""
    lost = Counter(kind.name for kind in types if kind not in KEEPS_ZEROS)
    return [f"{count} tensors become {name}, which cannot hold exact zeros" for name, count in sorted(lost.items())]


class _Pruner(VisitingWalk):
    """Prunes one block after the other and counts."""

    kept = ("zeros", "weights", "damping", "damped")

    def __init__(self, settings: PruneSettings, sparsities: list[float] | None) -> None:
        self.settings, self.sparsities = settings, sparsities
        self.zeros = self.weights = 0
        self.damping = 0.0
        self.damped: list[str] = []

    def __call__(self, visit: BlockVisit) -> list[str]:
        names = list(visit.block.linears)
        statistics, _ = visit.observe(names, self.settings.method == "sparsegpt")
        return self._prune_all(visit.block, statistics)

    def by_magnitude(self, block: Block) -> list[str]:
        """As a call, of the weights alone."""
        return self._prune_all(block, {})

    def _prune_all(self, block: Block, statistics: Mapping[str, LinearStatistics]) -> list[str]:
        pattern = self.settings.pattern
        if self.sparsities is not None:
            pattern = replace(pattern, sparsity=self.sparsities[block.index])
        for name in block.linears:
            pruned = self._prune(name, block.weight(name), statistics.get(name), pattern)
            block.set_weight(name, pruned)
            self.zeros += int((pruned == 0).sum())
            self.weights += pruned.numel()
        return list(block.linears)

    def _prune(
        self, name: str, weight: torch.Tensor, statistics: LinearStatistics | None, pattern: Pattern
    ) -> torch.Tensor:
        if statistics is None:
            return weight.masked_fill(magnitude_mask(weight, pattern), 0.0)
        if statistics.hessian is None:
            mean_square = torch.from_numpy(statistics.mean_square).to(weight.device)
            return weight.masked_fill(wanda_mask(weight, mean_square, pattern), 0.0)
        hessian = torch.from_numpy(statistics.hessian).to(weight.device)
        pruned, factor = sparsegpt(weight, hessian, pattern, name)
        self.damping = max(self.damping, factor.damping)
        note = damping_note(name, statistics.count, weight.shape[1], factor, DAMPING)
        self.damped += [note] if note else []
        return pruned
