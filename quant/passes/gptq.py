"""GPTQ into GGUF block types: ggml chooses the scales of a super-block, error feedback chooses its integers.

The result is weights that lie exactly on the file's grids, with the very bytes that hold them. The sweep itself is
`edgepack.quant.feedback`, block layouts are `edgepack.quant.codecs.ggml.grid`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.quant.codecs.ggml.codec import quantize_rows
from edgepack.quant.codecs.ggml.grid import GRID_TYPES, read_grid, write_quants
from edgepack.quant.feedback import DAMPING, damping_note, feedback_factor, feedback_sweep
from edgepack.quant.passes.coded_rows import CodedRows
from edgepack.quant.passes.run import PassOutcome, change_blocks, few

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.gguf.types import GGMLType
    from edgepack.model import Checkpoint
    from edgepack.quant.calibration.sweep import BlockVisit
    from edgepack.quant.feedback import FeedbackFactor
    from edgepack.quant.passes.run import Figure, PassRun


@dataclass(frozen=True)
class GptqSettings:
    """How errors are fed back.

    Attributes:
        damping: fraction of H's mean diagonal added to its diagonal.
    """

    damping: float = DAMPING


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


def gptq_rows(
    weight: torch.Tensor, factor: FeedbackFactor, kind: GGMLType, importance: NDArray[np.float32] | None
) -> tuple[NDArray[np.uint8], float]:
    """Bytes [out, bytes of a row] of `weight` [out, in] in `kind`, and the loss as `FeedbackResult` has it."""
    rounder = BlockTypeRounder(kind, importance, len(weight))
    result = feedback_sweep(weight, factor, rounder, block=256)
    return rounder.rows(), result.loss


def apply_gptq(checkpoint: Checkpoint, settings: GptqSettings, run: PassRun) -> PassOutcome:
    """Round all linears inside the blocks to the types that the file will hold. Does not modify `checkpoint`.

    Tensors whose type has no grid of scale · q + offset are left to plain quantisation, and the notes say so.

    Raises:
        CalibrationError: no tokens.
        NumericError: NaN or infinity; the text names the layer.
    """
    walk = _Walk(settings, run)
    changed = change_blocks(checkpoint, run, walk, "gptq")
    figures: dict[str, Figure] = {"tensors": walk.rounded, "coded_rows": len(walk.coded), "damping": walk.damping}
    notes = [f"gptq: {name}: type {kind.name} has no grid; left to plain quantisation" for name, kind in walk.skipped]
    return PassOutcome(changed, figures, (*notes, *few(walk.damped)), walk.coded)


class _Walk:
    """GPTQ on one block after the other."""

    def __init__(self, settings: GptqSettings, run: PassRun) -> None:
        self.settings, self.run = settings, run
        self.coded = CodedRows()
        self.skipped: list[tuple[str, GGMLType]] = []
        self.damped: list[str] = []
        self.rounded = 0
        self.damping = 0.0

    def __call__(self, visit: BlockVisit) -> list[str]:
        names = [name for name in visit.block.linears if self._takes(name)]
        statistics, _ = visit.observe(names, True)
        for name in names:
            found, weight = statistics[name], visit.block.weight(name)
            assert found.hessian is not None
            factor = feedback_factor(torch.from_numpy(found.hessian).to(weight.device), self.settings.damping, name)
            note = damping_note(name, found.count, weight.shape[1], factor, self.settings.damping)
            self.damped += [note] if note else []
            importance = found.mean_square if self.run.with_importance else None
            kind = self.run.target_types[name]
            rows, _ = gptq_rows(weight, factor, kind, importance)
            visit.block.set_weight(name, torch.from_numpy(self.coded.add(kind, rows, weight.shape[1])))
            self.damping = max(self.damping, factor.damping)
            self.rounded += 1
        return names

    def _takes(self, name: str) -> bool:
        kind = self.run.target_types.get(name)
        if kind is None or not kind.is_quantized:
            return False
        if kind not in GRID_TYPES:
            self.skipped.append((name, kind))
            return False
        return True
