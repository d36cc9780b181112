"""AWQ over a model: fold the best scales of every block, then clip; the result is an ordinary checkpoint.

Tables are in `folding`, searches in `scales` and `clipping`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.quant.passes.awq.clipping import clip_groups, output_error
from edgepack.quant.passes.awq.folding import FOLDS, HeadCounts, apply_fold, spread_over_heads
from edgepack.quant.passes.awq.outputs import sample_block, split_sequences
from edgepack.quant.passes.awq.rounding import IntegerRounding, rounding_for
from edgepack.quant.passes.awq.scales import FoldSearch, Sink
from edgepack.quant.passes.run import PassOutcome, VisitingWalk, change_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgepack.model import Checkpoint
    from edgepack.quant.calibration.blocks import Block
    from edgepack.quant.calibration.statistics import LinearStatistics
    from edgepack.quant.calibration.sweep import BlockVisit
    from edgepack.quant.passes.awq.folding import Fold
    from edgepack.quant.passes.awq.outputs import LinearSample
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
        sequences: how many calibration sequences the tokens come from that scales are judged on.
    """

    scale: bool = True
    clip: bool = True
    search_bits: int = 0
    integer_bits: int = 0
    group: int = 128
    sequences: int = 8


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
    walk.dtypes = {name: spec.dtype for name, spec in checkpoint.tensors.specs.items()}
    changed = change_blocks(checkpoint, run, walk, "awq")
    figures: dict[str, float] = {"folds": walk.folded, "clipped_tensors": walk.clipped}
    if walk.gains:
        figures |= {"folds_searched": len(walk.gains), "mean_error_ratio": float(np.mean(walk.gains))}
    return PassOutcome(changed, figures, tuple(notes))


class _Observed:
    """Statistics by linear over two parts of the sequences.

    Args:
        searched: of the part that is searched.
        held: of the part that accepts or refuses what was found.
    """

    def __init__(self, searched: dict[str, LinearStatistics], held: dict[str, LinearStatistics]) -> None:
        self.searched, self.held = dict(searched), dict(held)

    def divide(self, names: list[str], scales: torch.Tensor) -> None:
        """What the statistics of the linears `names` become when their inputs are divided by `scales` [in]."""
        by = scales.cpu().numpy().astype(np.float32)
        for part in (self.searched, self.held):
            for name in names:
                part[name] = part[name].divided(by)


class _Walk(VisitingWalk):
    """AWQ on one block after the other."""

    kept = ("gains", "folded", "clipped")

    def __init__(self, settings: AwqSettings, run: PassRun, folds: tuple[Fold, ...], heads: HeadCounts) -> None:
        self.settings, self.run, self.folds, self.heads = settings, run, folds, heads
        self.dtypes: Mapping[str, str] = {}  # of the source: folded weights are kept in it
        self.gains: list[float] = []
        self.folded = self.clipped = 0

    def __call__(self, visit: BlockVisit) -> list[str]:
        block, touched = visit.block, set[str]()
        observed = self._observe(visit)
        if self.folds:
            samples = sample_block(visit, self.folds, self.settings.sequences)
            for fold in self.folds:
                scales = self._fold(block, fold, samples, observed)
                if scales is not None:
                    touched |= _touched(block, fold)
                    observed.divide([block.names[f"{path}.weight"] for path in fold.sinks], scales)
        if self.settings.clip:
            touched |= set(self._clip_all(block, observed))
        for path, name in block.names.items():
            if name in touched:
                _round_to(block.module.get_parameter(path), self.dtypes[name])
        return [name for name in block.names.values() if name in touched]

    def _observe(self, visit: BlockVisit) -> _Observed:
        """Statistics of what enters every linear, for the sequences that are searched and those held back."""
        names = list(visit.block.linears)
        if not self.settings.clip:
            found = visit.observe(names, False)[0]
            return _Observed(found, found)
        parts = split_sequences(len(visit.inputs), len(visit.inputs))
        return _Observed(*(visit.observe(names, True, slice(*part))[0] for part in parts))

    def _rounding(self, name: str) -> Rounding | None:
        if self.settings.integer_bits:
            return IntegerRounding(self.settings.integer_bits, self.settings.group)
        kind = self.run.target_types.get(name)
        return None if kind is None else rounding_for(kind, self.settings.search_bits)

    def _fold(
        self, block: Block, fold: Fold, samples: dict[str, LinearSample], observed: _Observed
    ) -> torch.Tensor | None:
        """Search a fold and apply it if it helps; the scales of the sinks' columns, or None."""
        sinks = [self._sink(block, path, samples[path], observed) for path in fold.sinks]
        rounded = [sink for sink in sinks if sink is not None]
        if len(rounded) != len(sinks):
            return None
        found = FoldSearch(fold, rounded, self.heads).best()
        self.gains.append(found.error / found.plain if found.plain > 0 else 1.0)
        if not found.helps:
            return None
        self.folded += 1
        apply_fold(block.module, fold, found.scales, self.heads)
        return spread_over_heads(found.scales, self.heads) if fold.per_head else found.scales

    def _sink(self, block: Block, path: str, sample: LinearSample, observed: _Observed) -> Sink | None:
        name = block.names[f"{path}.weight"]
        rounding = self._rounding(name)
        if rounding is None:
            return None
        return Sink(block.weight(name), rounding, observed.searched[name], self.run.with_importance, sample)

    def _clip_all(self, block: Block, observed: _Observed) -> list[str]:
        """Clip the weights of a block that gain by it; their names."""
        names = [name for name in block.linears if self._may_clip(name)]
        clipped = [name for name in names if self._clip(block, name, observed.searched[name], observed.held[name])]
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


def _round_to(parameter: torch.Tensor, dtype: str) -> None:
    """Round to a source's type of two bytes, in place, as a checkpoint of the folded model would hold it."""
    kinds = {"bf16": torch.bfloat16, "f16": torch.float16}
    if dtype in kinds:
        parameter.data.copy_(parameter.data.to(kinds[dtype]))


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
