"""How coarse a GGUF type is: blocks, and the step of a block as a share of its largest weight or of its range.

A model of the types for searches, not their codec: real encoders choose their steps a little better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.gguf.types import GGMLType as T

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WeightGrid:
    """Steps of a type.

    Attributes:
        block: consecutive weights of a row that share a step.
        levels: a step is the block's largest |w|, or its range, over this.
        ranged: whether steps follow the range from least to greatest weight, zero included.
    """

    block: int
    levels: float
    ranged: bool = False

    def squared_steps(self, rows: torch.Tensor) -> torch.Tensor:
        """Squares of all steps of `rows` [rows, in]: [rows, blocks]."""
        blocks = rows.unflatten(-1, (-1, self.block))
        reach = blocks.amax(-1).clamp_min(0) - blocks.amin(-1).clamp_max(0) if self.ranged else blocks.abs().amax(-1)
        return (reach / self.levels).square()


# Sources: the structs of ggml-common.h and the encoders of ggml-quants.c.
_GRIDS = {
    T.Q8_0: WeightGrid(32, 127), T.Q6_K: WeightGrid(16, 32), T.Q5_0: WeightGrid(32, 16), T.Q4_0: WeightGrid(32, 8),
    T.Q3_K: WeightGrid(16, 4), T.Q5_1: WeightGrid(32, 31, True), T.Q4_1: WeightGrid(32, 15, True),
    T.Q5_K: WeightGrid(32, 31, True), T.Q4_K: WeightGrid(32, 15, True), T.Q2_K: WeightGrid(16, 3, True),
    T.IQ4_NL: WeightGrid(32, 8), T.IQ4_XS: WeightGrid(32, 8),
}  # fmt: skip


def weight_grid(kind: T) -> WeightGrid | None:
    """The grid of a type; None of floats. Types with tables of points count as integers of as many bits."""
    if not kind.is_quantized:
        return None
    if kind in _GRIDS:
        return _GRIDS[kind]
    bits = 8 * kind.block_bytes / kind.block_size
    return WeightGrid(min(32, kind.block_size), 2 ** (bits - 1))
