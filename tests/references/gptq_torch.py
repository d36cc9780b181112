"""GPTQ into ggml's block types on the generic sweep of `quant.feedback`, a column at a time: the kernel's reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.quant.codecs.ggml.codec import quantize_rows
from edgepack.quant.codecs.ggml.grid import read_grid, write_quants

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.gguf.types import GGMLType


class BlockTypeRounder:
    """Rounds to the grids of a ggml type, whose scales are fixed when a super-block begins.

    Args:
        kind: a type whose values are scale · q + offset.
        importance: E[x²] [in], what ggml weights errors by while it searches scales; or None.
        rows: rows of the weight.
    """

    def __init__(self, kind: GGMLType, importance: NDArray[np.float32] | None, rows: int) -> None:
        self.kind, self.group = kind, kind.block_size
        self._importance, self._rows = importance, rows
        self._blocks: list[NDArray[np.uint8]] = []
        self._quants: list[torch.Tensor] = []
        self._scale = self._offset = torch.empty(0)
        self._span, self._start = (0, 0), 0
        self._sub_block = 1

    def start_group(self, start: int, weights: torch.Tensor) -> None:
        """Let ggml choose the scales for the columns from `start`."""
        rows = np.ascontiguousarray(weights.cpu().numpy())
        importance = None if self._importance is None else self._importance[start : start + self.group]
        blocks = quantize_rows(self.kind, rows, importance)
        grid = read_grid(self.kind, blocks)
        self._blocks.append(blocks)
        self._scale = torch.from_numpy(grid.scale.copy()).to(weights.device)
        self._offset = torch.from_numpy(grid.offset.copy()).to(weights.device)
        self._span, self._sub_block, self._start = (grid.lowest, grid.highest), grid.group, start

    def round(self, column: int, values: torch.Tensor) -> torch.Tensor:
        """The nearest point of each row's grid; a scale of zero has only its offset."""
        at = (column - self._start) // self._sub_block
        scale, offset = self._scale[:, at], self._offset[:, at]
        quants = ((values - offset) / torch.where(scale == 0, torch.ones_like(scale), scale)).round()
        quants = quants.clamp(*self._span).masked_fill(scale == 0, 0.0)
        self._quants.append(quants.to(torch.int8).cpu())
        return quants * scale + offset

    def rows(self) -> NDArray[np.uint8]:
        """All blocks with the integers that were chosen: uint8 [rows, bytes of a row]."""
        quants = torch.stack(self._quants, dim=1).numpy()
        blocks = np.concatenate(self._blocks, axis=1)
        return write_quants(self.kind, blocks, quants)
