"""Smoothing of one block, from samples of what enters its matrices: every fold of its family, one after the other.

It depends on nothing but the block as the checkpoint has it, its samples and the residual stream's order, so any
worker does it. The walk over blocks is `weights`'.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from edgepack.gguf.types import GGMLType
from edgepack.quant.calibration.input_samples import TOKENS
from edgepack.quant.passes.awq.folding import apply_fold, spread_over_heads
from edgepack.quant.passes.smooth.objective import Sink, objective_of
from edgepack.quant.passes.smooth.residual import block_axis, reordered
from edgepack.quant.passes.smooth.scales import STEPS, find_scales, parts_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.quant.calibration.block_samples import InputSample
    from edgepack.quant.calibration.blocks import Block
    from edgepack.quant.passes.awq.folding import Fold, HeadCounts
    from edgepack.quant.passes.smooth.scales import FoundScales


@dataclass(frozen=True)
class SmoothSettings:
    """How scales are searched.

    Attributes:
        steps: of the search; 0 leaves the model as it is.
        strength: share of the scales' logarithms that is folded; 0 leaves the model as it is.
        order: whether the residual stream may be put in another order where the head is tied to the embedding.
        tokens: how many are looked at, one by one.
    """

    steps: int = STEPS
    strength: float = 1.0
    order: bool = True
    tokens: int = TOKENS


@dataclass(frozen=True)
class SmoothedBlock:
    """What became of a block.

    Attributes:
        found: of each fold that was searched.
        arrays: checkpoint name → what has changed, in the checkpoint's shape.
    """

    found: tuple[FoundScales, ...]
    arrays: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class BlockSmoothing:
    """What is done with every block.

    Attributes:
        folds: of the family, in the order in which they are searched.
        heads: of the model.
        kinds: checkpoint name of a matrix → the type that the file will hold it in.
        settings: how scales are searched.
        order: of the residual stream, int64 [channels]; None for that of the checkpoint.
    """

    folds: tuple[Fold, ...]
    heads: HeadCounts
    kinds: Mapping[str, GGMLType]
    settings: SmoothSettings
    order: NDArray[np.int64] | None

    def __call__(self, block: Block, samples: Mapping[str, InputSample]) -> SmoothedBlock:
        """Smooth a block, in place.

        Args:
            block: loaded.
            samples: checkpoint name → what entered it.
        """
        touched = set[str]()
        found: list[FoundScales] = []
        for fold in self.folds:
            touched |= self._fold(block, fold, samples, found)
        return SmoothedBlock(tuple(found), self._changed(block, touched))

    def _fold(self, block: Block, fold: Fold, samples: Mapping[str, InputSample], found: list[FoundScales]) -> set[str]:
        """Search a fold, add what was found, and apply it if it helps; checkpoint names of what it changed."""
        names = [block.names[f"{path}.weight"] for path in fold.sinks]
        kinds = [self.kinds.get(name, GGMLType.F32) for name in names]
        if any(name not in samples for name in names) or not any(kind.is_quantized for kind in kinds):
            return set()
        sinks = [self._sink(block, name, kind, samples[name], fold) for name, kind in zip(names, kinds, strict=True)]
        found.append(scales := self._search(sinks, fold))
        if not scales.helps:
            return set()
        apply_fold(block.module, fold, scales.scales, self.heads)
        paths = [f"{path}.weight" for path in fold.sinks] + [f"{fold.source}.weight", f"{fold.source}.bias"]
        return {block.names[path] for path in paths if path in block.names}

    def _search(self, sinks: list[Sink], fold: Fold) -> FoundScales:
        columns, order = sinks[0].weight.shape[1], self._moved(fold)
        place = torch.arange(columns) if order is None else torch.from_numpy(order)

        def spread(scales: torch.Tensor) -> torch.Tensor:
            return (spread_over_heads(scales, self.heads) if fold.per_head else scales)[place]

        channels = columns // self.heads.query * self.heads.key_value if fold.per_head else columns
        searched, held = (objective_of(sinks, part) for part in parts_of(len(sinks[0].sample.inputs)))
        return find_scales(
            searched, held, channels, spread, steps=self.settings.steps, strength=self.settings.strength
        )  # fmt: skip

    def _moved(self, fold: Fold) -> NDArray[np.int64] | None:
        """The order in which the columns of a fold's sinks will stand, where it is not that of the checkpoint."""
        return self.order if block_axis(f"{fold.sinks[0]}.weight") == "columns" else None

    def _sink(self, block: Block, name: str, kind: GGMLType, sample: InputSample, fold: Fold) -> Sink:
        weight, order = block.weight(name), self._moved(fold)
        if order is None:
            return Sink(weight, kind, sample)
        place = torch.from_numpy(order)
        moved = replace(sample, inputs=sample.inputs[:, place], gradients=sample.gradients[:, place])
        return Sink(weight[:, place], kind, moved)

    def _changed(self, block: Block, touched: set[str]) -> dict[str, NDArray[np.float32]]:
        """What is no more as the checkpoint has it."""
        found = {}
        for path, name in block.names.items():
            axis = "none" if self.order is None else block_axis(path)
            if name not in touched and axis == "none":
                continue
            array = block.as_stored(name)
            if self.order is not None and axis is not None:
                array = reordered(array, axis, self.order)
            found[name] = array
        return found
