"""Smoothing over a model: scales or an order of the residual stream for the head, then the scales of every fold.

The result is an ordinary checkpoint that computes the same function. A block's folds are `block`'s, searches `scales`'
and `order`'s, tables `passes.awq.folding`'s and `residual`'s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgepack.gguf.types import GGMLType
from edgepack.model import OverriddenTensors, read_tensor
from edgepack.quant.calibration.input_samples import InputSampler
from edgepack.quant.passes.array_folder import ArrayFolder
from edgepack.quant.passes.awq.folding import FOLDS, HeadCounts
from edgepack.quant.passes.run import PassOutcome
from edgepack.quant.passes.smooth.block import BlockSmoothing, SmoothSettings
from edgepack.quant.passes.smooth.head import head_objectives, head_order
from edgepack.quant.passes.smooth.residual import ChangedColumns, last_norm, outer_names
from edgepack.quant.passes.smooth.scales import find_scales

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.model import Checkpoint
    from edgepack.quant.calibration.input_samples import HeadSample
    from edgepack.quant.passes.awq.folding import Fold
    from edgepack.quant.passes.run import PassRun
    from edgepack.quant.passes.smooth.block import SmoothedBlock
    from edgepack.quant.passes.smooth.scales import FoundScales

# Of the predicted divergence, below which nothing is folded. Without outliers among activations some per cent are
# predicted, of uneven weights, and files refined then lost as much (docs/lab-notes.md); with outliers it is a third.
LEAST_GAIN = 0.1


def apply_smooth(checkpoint: Checkpoint, settings: SmoothSettings, run: PassRun) -> PassOutcome:
    """Fold the scales that lower what the file's rounding of activations and weights costs. Modifies no argument.

    A family without a folding table keeps its scales, and the outcome's notes say so.

    Raises:
        CalibrationError: no tokens.
        NumericError: NaN or infinity; the text names the layer.
        UnsupportedModelError: layers that read what earlier ones keep.
    """
    kind = str(checkpoint.config.get("model_type"))
    if not settings.steps or not settings.strength:
        return PassOutcome(checkpoint, {"folds": 0})
    if kind not in FOLDS:
        return PassOutcome(checkpoint, {"folds": 0}, (f"smooth: no folding table for '{kind}': nothing was done",))
    return _Smoothing(checkpoint, settings, run).outcome(FOLDS[kind])


class _Smoothing:
    """One walk back over the blocks, each smoothed as it comes."""

    def __init__(self, checkpoint: Checkpoint, settings: SmoothSettings, run: PassRun) -> None:
        self.checkpoint, self.settings, self.run = checkpoint, settings, run
        tokens = run.required_tokens("pass 'smooth'").numpy()
        self.sampler = InputSampler(
            checkpoint, tokens, run.folder / "smooth-inputs", device=run.device, batch=run.batch, kept=settings.tokens,
            progress=run.progress, crew=run.crew,
        )  # fmt: skip
        self.changed = ArrayFolder(run.folder / "smooth")
        self.order: NDArray[np.int64] | None = None  # of the residual stream
        self.orders: dict[str, NDArray[np.int64]] = {}  # of the tensors outside blocks
        self.head_scales: dict[str, NDArray[np.float32]] = {}
        self.found: list[FoundScales] = []
        self.notes: list[str] = []
        self.figures: dict[str, float] = {}

    def outcome(self, folds: tuple[Fold, ...]) -> PassOutcome:
        """Smooth every block."""
        self._smooth_head(self.sampler.head(), folds[0].norm_offset)
        heads = HeadCounts.of(self.checkpoint.config)
        for smoothed in self.sampler.map(
            BlockSmoothing(folds, heads, dict(self.run.target_types), self.settings, self.order)
        ):
            self._keep(smoothed)
        helped = [found for found in self.found if found.helps]
        self.figures |= {
            "folds": len(helped),
            "folds_searched": len(self.found),
            "predicted_before": sum(found.before for found in self.found),
            "predicted_after": sum(found.after if found.helps else found.before for found in self.found),
        }
        if (gain := self._gain()) < LEAST_GAIN:
            line = f"smooth: {gain:.0%} less divergence is predicted, too little to be sure of: nothing was done"
            return PassOutcome(self.checkpoint, {**self.figures, "folds": 0}, (*self.notes, line))
        outer = ChangedColumns(self.checkpoint.tensors, self.orders, self.head_scales)
        changed = replace(self.checkpoint, tensors=OverriddenTensors(outer, self.changed))
        return PassOutcome(changed, self.figures, tuple(self.notes))

    def _gain(self) -> float:
        """By which share of it the predicted divergence falls, the head's with it."""
        before, after = (
            self.figures[f"predicted_{when}"] + self.figures.get(f"head_{when}", 0.0) for when in ("before", "after")
        )
        return 1 - after / before if before else 0.0

    def _smooth_head(self, sample: HeadSample, norm_offset: float) -> None:
        """Choose the residual stream's order for a head that is the embedding too, scales for one that is not."""
        model, name = self.sampler.model, self.sampler.model.head_name
        kind = GGMLType.F32 if name is None else self.run.target_types.get(name, GGMLType.F32)
        tied = name == model.embedding_name
        if name is None or not kind.is_quantized or (tied and not self.settings.order):
            return
        outer = outer_names(model)
        if outer is None:
            self.notes.append("smooth: not all that is outside the blocks is known: the output matrix was left alone")
        elif tied:
            self._order_of_head(name, kind, sample, outer)
        else:
            self._scales_of_head(name, kind, sample, last_norm(outer), norm_offset)

    def _order_of_head(self, name: str, kind: GGMLType, sample: HeadSample, outer: tuple[str, ...]) -> None:
        found = head_order(self.sampler.model.source, name, kind, sample)
        self.figures |= {"head_before": found.before, "head_after": found.after}
        if found.helps:
            self.order = found.order
            self.orders = dict.fromkeys(outer, found.order)

    def _scales_of_head(
        self, name: str, kind: GGMLType, sample: HeadSample, norm: str | None, norm_offset: float
    ) -> None:
        if norm is None:
            return
        source = self.sampler.model.source
        objectives = head_objectives(source, name, kind, sample)
        found = find_scales(
            *objectives, sample.inputs.shape[1], lambda scales: scales, steps=self.settings.steps,
            strength=self.settings.strength,
        )  # fmt: skip
        self.figures |= {"head_before": found.before, "head_after": found.after}
        if not found.helps:
            return
        scales = found.scales.numpy()
        self.head_scales = {name: scales}
        for vector, offset in ((norm, norm_offset), (norm.replace(".weight", ".bias"), 0.0)):
            if vector in source.specs:
                whole = (read_tensor(source, vector).astype(np.float64) + offset) / scales - offset
                self.changed.put(vector, whole.astype(np.float32))

    def _keep(self, smoothed: SmoothedBlock) -> None:
        """Write what has changed of a block."""
        self.found.extend(smoothed.found)
        for name, array in smoothed.arrays.items():
            self.changed.put(name, array, self.checkpoint.tensors.specs[name].dtype)
