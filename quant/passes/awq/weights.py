"""AWQ over a model: fold the best scales of every block, then clip; the result is an ordinary checkpoint.

Tables are in `folding`, searches in `scales` and `clipping`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from edgepack.quant.passes.awq.clipping import clip_groups
from edgepack.quant.passes.awq.folding import FOLDS, HeadCounts, apply_fold, spread_over_heads
from edgepack.quant.passes.awq.rounding import IntegerRounding, rounding_for
from edgepack.quant.passes.awq.scales import FoldSearch, Sink
from edgepack.quant.passes.run import PassOutcome, change_blocks

if TYPE_CHECKING:
    from edgepack.quant.calibration.blocks import Block
    from edgepack.quant.calibration.statistics import LinearStatistics
    from edgepack.quant.calibration.sweep import BlockVisit
    from edgepack.quant.passes.awq.folding import Fold
    from edgepack.quant.passes.awq.rounding import Rounding
    from edgepack.quant.passes.run import PassRun

    from edgepack.model import Checkpoint

# Clipping queries or keys moves attention scores; the paper leaves them alone.
_NOT_CLIPPED = ("q_proj", "k_proj", "qkv", "query_key_value", "c_attn")


@dataclass(frozen=True)
class AwqSettings:
    """How scales and clips are searched.

    Attributes:
        scale: whether to search scales.
        clip: whether to search clips.
        search_bits: steps on the ladder of K-quants between the file's type and the one searched with.
        integer_bits: search for integers with groups of `group` instead of the file's type; 0 for the file's type.
        group: of the integer variant.
        sequences: how many calibration sequences a parent's output is compared on.
    """

    scale: bool = True
    clip: bool = True
    search_bits: int = 0
    integer_bits: int = 0
    group: int = 128
    sequences: int = 16


def apply_awq(checkpoint: Checkpoint, settings: AwqSettings, run: PassRun) -> PassOutcome:
    """Scale and clip for the types that the file will hold. Does not modify `checkpoint`.

    A family without a folding table is only clipped, and the outcome's notes say so.

    Raises:
        CalibrationError: no tokens.
        NumericError: NaN or infinity; the text names the layer.
    """
    kind = str(checkpoint.config.get("model_type"))
    folds, notes = FOLDS.get(kind, ()) if settings.scale else (), []
    if settings.scale and not folds:
        notes.append(f"awq: no folding table for '{kind}': scales were skipped, clipping was done")
    walk = _Walk(settings, run, folds, HeadCounts.of(checkpoint.config))
    changed = change_blocks(checkpoint, run, walk, "awq")
    figures: dict[str, float] = {"folds": len(walk.gains), "clipped_tensors": walk.clipped}
    if walk.gains:
        figures["mean_error_ratio"] = float(np.mean(walk.gains))
    return PassOutcome(changed, figures, tuple(notes))


class _Walk:
    """AWQ on one block after the other."""

    def __init__(self, settings: AwqSettings, run: PassRun, folds: tuple[Fold, ...], heads: HeadCounts) -> None:
        self.settings, self.run, self.folds, self.heads = settings, run, folds, heads
        self.gains: list[float] = []
        self.clipped = 0

    def __call__(self, visit: BlockVisit) -> list[str]:
        block, touched = visit.block, set[str]()
        statistics, _ = visit.observe(list(block.linears), True)
        scaled: dict[str, torch.Tensor] = {}
        for fold in self.folds:
            scales = self._fold(visit, fold, statistics)
            if scales is not None:
                touched |= _touched(block, fold)
                scaled |= scales
        if self.settings.clip:
            touched |= self._clip(block, statistics, scaled)
        return [name for name in block.names.values() if name in touched]

    def _rounding(self, name: str) -> Rounding | None:
        if self.settings.integer_bits:
            return IntegerRounding(self.settings.integer_bits, self.settings.group)
        kind = self.run.target_types.get(name)
        return None if kind is None else rounding_for(kind, self.settings.search_bits)

    def _fold(
        self, visit: BlockVisit, fold: Fold, statistics: dict[str, LinearStatistics]
    ) -> dict[str, torch.Tensor] | None:
        """Search and apply one fold; the scale of each sink's input channels, or None where nothing is rounded."""
        block = visit.block
        sinks = [self._sink(block, path, statistics) for path in fold.sinks]
        rounded = [sink for sink in sinks if sink is not None]
        if len(rounded) != len(sinks):
            return None
        scales, error, plain = FoldSearch(visit, fold, rounded, self.heads, self.settings.sequences).best()
        self.gains.append(error / plain if plain > 0 else 1.0)
        apply_fold(block.module, fold, scales, self.heads)
        columns = spread_over_heads(scales, self.heads) if fold.per_head else scales
        return {sink.name: columns for sink in rounded}

    def _sink(self, block: Block, path: str, statistics: dict[str, LinearStatistics]) -> Sink | None:
        name = block.names[f"{path}.weight"]
        rounding = self._rounding(name)
        if rounding is None:
            return None
        return Sink(name, block.linears[name], rounding, statistics[name], self.run.with_importance)

    def _clip(self, block: Block, statistics: dict[str, LinearStatistics], scaled: dict[str, torch.Tensor]) -> set[str]:
        """Clip every rounded linear but queries and keys; their names."""
        clipped = set()
        for name in block.linears:
            rounding = self._rounding(name)
            if rounding is None or any(part in name for part in _NOT_CLIPPED):
                continue
            weight, found = block.weight(name), statistics[name]
            assert found.hessian is not None
            hessian = torch.from_numpy(found.hessian).to(weight.device)
            if name in scaled:
                hessian = hessian / scaled[name] / scaled[name][:, None]
            importance = hessian.diagonal().contiguous() if self.run.with_importance else None
            block.set_weight(name, clip_groups(weight, hessian, rounding, importance))
            clipped.add(name)
        self.clipped += len(clipped)
        return clipped


def _touched(block: Block, fold: Fold) -> set[str]:
    """Checkpoint names of all tensors that a fold changes."""
    paths = [f"{path}.weight" for path in fold.sinks] + [f"{fold.source}.weight", f"{fold.source}.bias"]
    return {block.names[path] for path in paths if path in block.names}
