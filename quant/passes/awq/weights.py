"""AWQ over a model: fold the best scales of every block, then clip; the result is an ordinary checkpoint.

Tables are in `folding`, searches in `scales` and `clipping`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.quant.passes.awq.clipping import clip_groups, output_error
from edgepack.quant.passes.awq.folding import FOLDS, HeadCounts, apply_fold
from edgepack.quant.passes.awq.outputs import split_sequences
from edgepack.quant.passes.awq.rounding import IntegerRounding, rounding_for
from edgepack.quant.passes.awq.scales import FoldSearch, Sink
from edgepack.quant.passes.run import PassOutcome, change_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.model import Checkpoint
    from edgepack.quant.calibration.blocks import Block
    from edgepack.quant.calibration.statistics import LinearStatistics
    from edgepack.quant.calibration.sweep import BlockVisit
    from edgepack.quant.passes.awq.folding import Fold
    from edgepack.quant.passes.awq.rounding import Rounding
    from edgepack.quant.passes.run import PassRun

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
    sequences: int = 24


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
        rest = "clipping was done" if settings.clip else "nothing was done"
        notes.append(f"awq: no folding table for '{kind}': scales were skipped, {rest}")
    walk = _Walk(settings, run, folds, HeadCounts.of(checkpoint.config))
    changed = change_blocks(checkpoint, run, walk, "awq")
    figures: dict[str, float] = {"folds": walk.folded, "clipped_tensors": walk.clipped}
    if walk.gains:
        figures |= {"folds_searched": len(walk.gains), "mean_error_ratio": float(np.mean(walk.gains))}
    return PassOutcome(changed, figures, tuple(notes))


class _Walk:
    """AWQ on one block after the other."""

    def __init__(self, settings: AwqSettings, run: PassRun, folds: tuple[Fold, ...], heads: HeadCounts) -> None:
        self.settings, self.run, self.folds, self.heads = settings, run, folds, heads
        self.gains: list[float] = []
        self.folded = self.clipped = 0

    def __call__(self, visit: BlockVisit) -> list[str]:
        block, touched = visit.block, set[str]()
        if self.folds:
            statistics, _ = visit.observe(list(block.linears), False)
            for fold in self.folds:
                if self._fold(visit, fold, statistics):
                    touched |= _touched(block, fold)
        if self.settings.clip:
            touched |= set(self._clip_all(visit))
        return [name for name in block.names.values() if name in touched]

    def _rounding(self, name: str) -> Rounding | None:
        if self.settings.integer_bits:
            return IntegerRounding(self.settings.integer_bits, self.settings.group)
        kind = self.run.target_types.get(name)
        return None if kind is None else rounding_for(kind, self.settings.search_bits)

    def _fold(self, visit: BlockVisit, fold: Fold, statistics: dict[str, LinearStatistics]) -> bool:
        """Search a fold and apply it if it helps; whether it did."""
        block = visit.block
        sinks = [self._sink(block, path, statistics) for path in fold.sinks]
        rounded = [sink for sink in sinks if sink is not None]
        if len(rounded) != len(sinks):
            return False
        found = FoldSearch(visit, fold, rounded, self.heads, self.settings.sequences).best()
        self.gains.append(found.error / found.plain if found.plain > 0 else 1.0)
        if found.helps:
            self.folded += 1
            apply_fold(block.module, fold, found.scales, self.heads)
        return found.helps

    def _sink(self, block: Block, path: str, statistics: dict[str, LinearStatistics]) -> Sink | None:
        name = block.names[f"{path}.weight"]
        rounding = self._rounding(name)
        if rounding is None:
            return None
        return Sink(name, block.linears[name], rounding, statistics[name], self.run.with_importance)

    def _clip_all(self, visit: BlockVisit) -> list[str]:
        """Clip the weights of a block that gain by it; their names. What enters them is observed as folds left it."""
        names = [name for name in visit.block.linears if self._may_clip(name)]
        if not names:
            return []
        parts = split_sequences(len(visit.inputs), len(visit.inputs))
        searched, held = (visit.observe(names, True, slice(*part))[0] for part in parts)
        clipped = [name for name in names if self._clip(visit.block, name, searched[name], held[name])]
        self.clipped += len(clipped)
        return clipped

    def _may_clip(self, name: str) -> bool:
        return self._rounding(name) is not None and not any(part in name for part in _NOT_CLIPPED)

    def _clip(self, block: Block, name: str, searched: LinearStatistics, held: LinearStatistics) -> bool:
        """Clip a linear's weight, in place, if that lowers its error where it was not searched; whether it did."""
        rounding, weight = self._rounding(name), block.weight(name)
        assert rounding is not None
        importance = None
        if self.run.with_importance:
            importance = torch.from_numpy(_mean_square(searched, held)).to(weight.device)
        clipped = clip_groups(weight, _hessian(searched, weight), rounding, importance)
        judge = _hessian(held, weight)
        before, after = (output_error(rounding(each, importance) - weight, judge) for each in (weight, clipped))
        if after < before:
            block.set_weight(name, clipped)
        return after < before


def _touched(block: Block, fold: Fold) -> set[str]:
    """Checkpoint names of all tensors that a fold changes."""
    paths = [f"{path}.weight" for path in fold.sinks] + [f"{fold.source}.weight", f"{fold.source}.bias"]
    return {block.names[path] for path in paths if path in block.names}


def _hessian(statistics: LinearStatistics, weight: torch.Tensor) -> torch.Tensor:
    assert statistics.hessian is not None
    return torch.from_numpy(statistics.hessian).to(weight.device, weight.dtype)


def _mean_square(first: LinearStatistics, second: LinearStatistics) -> NDArray[np.float32]:
    """E[x²] over the tokens of both, as the file's importance matrix will have it."""
    total = first.count * first.mean_square.astype(np.float64) + second.count * second.mean_square.astype(np.float64)
    return (total / (first.count + second.count)).astype(np.float32)
