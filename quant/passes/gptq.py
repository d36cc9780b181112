"""GPTQ into GGUF block types: the encoder chooses the scales of a super-block, error feedback chooses its integers.

The result is weights that lie exactly on the file's grids, with the very bytes that hold them. The inner loop is a
compiled kernel, factors are `edgepack.quant.feedback`'s, block layouts `edgepack.quant.codecs.ggml.grid`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgepack.gguf.types import GGMLType
from edgepack.kernels.native import library, pointer
from edgepack.quant.calibration.collect import head_statistics
from edgepack.quant.calibration.statistics import LinearStatistics
from edgepack.quant.codecs.ggml.codec import quantize_rows
from edgepack.quant.codecs.ggml.grid import GRID_TYPES, read_grid, write_quants
from edgepack.quant.feedback import DAMPING, damping_note, feedback_factor
from edgepack.quant.passes.coded_rows import CodedRows
from edgepack.quant.passes.crew_blocks import CrewVisit
from edgepack.quant.passes.run import PassOutcome, VisitingWalk, change_blocks, few

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from edgepack.model import Checkpoint
    from edgepack.quant.calibration.block_context import BlockContext
    from edgepack.quant.calibration.blocks import Block, BlockwiseModel
    from edgepack.quant.calibration.sweep import BlockVisit
    from edgepack.quant.codecs.ggml.grid import Grid
    from edgepack.quant.feedback import FeedbackFactor
    from edgepack.quant.passes.run import Figure, PassRun


@dataclass(frozen=True)
class GptqSettings:
    """How errors are fed back.

    Attributes:
        damping: fraction of H's mean diagonal added to its diagonal.
    """

    damping: float = DAMPING


# Columns whose errors move the columns beyond in one matrix product; a multiple of every type's block.
_BLOCK = 256
_MOMENTS = "moments"


def gptq_rows(
    weight: torch.Tensor, factor: FeedbackFactor, kind: GGMLType, importance: NDArray[np.float32] | None
) -> tuple[NDArray[np.uint8], float]:
    """Round `weight` to a type whose values are scale · q + offset; scales are chosen when a block begins.

    Args:
        weight: float32 [out, in], `in` a multiple of the type's block; not modified.
        factor: of the layer's Hessian.
        kind: one of `GRID_TYPES`.
        importance: E[x²] [in], what errors are weighted by while scales are searched; or None.

    Returns:
        uint8 [out, bytes of a row], and the loss as `FeedbackResult` has it.
    """
    work, upper = weight.detach().cpu().float().clone(), factor.upper.cpu()
    quants = np.empty(work.shape, dtype=np.int8)
    blocks, loss = [], 0.0
    for start in range(0, work.shape[1], _BLOCK):
        stop = min(start + _BLOCK, work.shape[1])
        tile = _Tile(work[:, start:stop].contiguous().numpy(), upper[start:stop, start:stop].contiguous().numpy())
        blocks += tile.round(kind, None if importance is None else importance[start:stop])
        quants[:, start:stop] = tile.quants
        errors = torch.from_numpy(tile.errors)
        work[:, stop:].addmm_(errors, upper[start:stop, stop:], alpha=-1)
        loss += float(errors.square().sum().double())
    return write_quants(kind, np.concatenate(blocks, axis=1), quants), loss


class _Tile:
    """A block of columns: rounded group after group, the errors of each made good by the columns to its right.

    Args:
        weights: float32 [out, width], at most `_BLOCK` wide; modified.
        upper: float32 [width, width], the factor's part.
    """

    def __init__(self, weights: NDArray[np.float32], upper: NDArray[np.float32]) -> None:
        self.weights, self.upper = weights, upper
        self.quants = np.empty(weights.shape, dtype=np.int8)
        self.errors = np.empty_like(weights)

    def round(self, kind: GGMLType, importance: NDArray[np.float32] | None) -> list[NDArray[np.uint8]]:
        """Round all columns; the blocks of each group, their integers those of plain rounding."""
        width, found = self.weights.shape[1], []
        for first in range(0, width, kind.block_size):
            last = first + kind.block_size
            rows = np.ascontiguousarray(self.weights[:, first:last])
            found.append(quantize_rows(kind, rows, None if importance is None else importance[first:last]))
            self._feed_back(first, last, read_grid(kind, found[-1]))
        return found

    def _feed_back(self, first: int, last: int, grid: Grid) -> None:
        rows, width = self.weights.shape
        library().edgepack_feedback_grid(
            pointer(self.weights, "float *"), rows, width, first, last, pointer(self.upper, "const float *"),
            pointer(np.ascontiguousarray(grid.scale), "const float *"),
            pointer(np.ascontiguousarray(grid.offset), "const float *"),
            grid.group, grid.lowest, grid.highest, pointer(self.quants, "int8_t *"), pointer(self.errors, "float *"),
        )  # fmt: skip


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
    notes = [f"gptq: {name}: type {kind} has no grid; left to plain quantisation" for name, kind in walk.skipped]
    return PassOutcome(changed, figures, (*notes, *few(walk.damped)), walk.coded, measured=walk.measured)


@dataclass(frozen=True)
class _Group:
    """Linears of a block that read one input.

    Attributes:
        index: of the block.
        kinds: checkpoint name → type.
        found: statistics of the input.
        share: of H's mean diagonal that is added to its diagonal.
        with_importance: whether scales are searched by importance.
    """

    index: int
    kinds: Mapping[str, GGMLType]
    found: LinearStatistics
    share: float
    with_importance: bool

    @property
    def bytes(self) -> int:
        """Memory of the work: H and its factor in float64, and about as much for the weights."""
        return 64 * len(self.found.mean_square) ** 2


@dataclass(frozen=True)
class _Rounded:
    """A rounded matrix.

    Attributes:
        rows: uint8 [out, bytes of a row].
        damping: of its factor.
        note: on its factor; empty for none.
    """

    rows: NDArray[np.uint8]
    damping: float
    note: str | None


def _round_group(block: Block, group: _Group) -> dict[str, _Rounded]:
    """Round the linears of a group; the block is not changed."""
    found = group.found
    assert found.hessian is not None
    factor = feedback_factor(torch.from_numpy(found.hessian), group.share, next(iter(group.kinds)))
    rounded = {}
    for name, kind in group.kinds.items():
        weight = block.weight(name)
        note = damping_note(name, found.count, weight.shape[1], factor, group.share)
        rows, _ = gptq_rows(weight, factor, kind, found.mean_square if group.with_importance else None)
        rounded[name] = _Rounded(rows, factor.damping, note)
    return rounded


def _round_loaded(context: BlockContext, group: _Group) -> dict[str, _Rounded]:
    """The same of a block that is loaded for it; what a worker does."""
    return _round_group(context.block(group.index), group)


class _Walk(VisitingWalk):
    """GPTQ on one block after the other."""

    kept = ("skipped", "damped", "rounded", "damping", "left")

    def __init__(self, settings: GptqSettings, run: PassRun) -> None:
        self.settings, self.run = settings, run
        self.coded = CodedRows(run.folder / "gptq-rows")
        self.skipped: list[tuple[str, str]] = []  # (tensor, type)
        self.damped: list[str] = []
        self.rounded = 0
        self.damping = 0.0
        self.left = 0  # linears that are still to be quantised
        self.measured: dict[str, LinearStatistics] | None = None
        self._seen: dict[str, LinearStatistics] = {}  # without H
        self._last: dict[str, LinearStatistics] = {}  # of the last block
        self._rows: dict[str, NDArray[np.uint8]] = {}  # of the last block, by type, columns and name

    def __call__(self, visit: BlockVisit) -> list[str]:
        names = [name for name in visit.block.linears if self._takes(name)]
        self.left += len(visit.block.linears) - len(names)
        self._rows = {}
        statistics, _ = visit.observe(names, True)
        self._last = {name: replace(found, hessian=None) for name, found in statistics.items()}
        self._seen |= self._last
        of_input: dict[int, list[str]] = {}  # linears that read one input share its statistics
        for name in names:
            of_input.setdefault(id(statistics[name]), []).append(name)
        groups = [self._group(visit.block.index, members, statistics[members[0]]) for members in of_input.values()]
        rounded = {name: one for found in self._rounded(visit, groups) for name, one in found.items()}
        for name in names:
            self._take(visit.block, name, rounded[name])
        return names

    def _group(self, index: int, names: list[str], found: LinearStatistics) -> _Group:
        kinds = {name: self.run.target_types[name] for name in names}
        return _Group(index, kinds, found, self.settings.damping, self.run.with_importance)

    def _rounded(self, visit: BlockVisit, groups: list[_Group]) -> Iterator[dict[str, _Rounded]]:
        """What becomes of every group, here or by the run's crew."""
        if not isinstance(visit, CrewVisit):
            return (_round_group(visit.block, group) for group in groups)
        return visit.crew.map(_round_loaded, visit.context, groups, need=lambda group: group.bytes, with_torch=True)

    def _take(self, block: Block, name: str, rounded: _Rounded) -> None:
        kind, rows = self.run.target_types[name], rounded.rows
        columns = block.weight(name).shape[1]
        self.damped += [rounded.note] if rounded.note else []
        self._rows[f"{kind.value}:{columns}:{name}"] = rows
        block.set_weight(name, torch.from_numpy(self.coded.add(kind, rows, columns)))
        self.damping = max(self.damping, rounded.damping)
        self.rounded += 1

    def end(self, model: BlockwiseModel, tokens: torch.Tensor, hidden: torch.Tensor) -> None:
        """As `VisitingWalk.end`: where every linear has its bytes, the output matrix alone is still to be quantised."""
        if self.run.with_importance and not self.left:
            self.measured = self._seen | head_statistics(model, tokens, hidden, self.run.batch)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As `Walk.arrays`: the coded rows of the last block, and the moments of its inputs."""
        moments = {f"{_MOMENTS}:{found.count}:{name}": np.stack([found.mean_abs, found.mean_square])
                   for name, found in self._last.items()}  # fmt: skip
        return {**self._rows, **moments}

    def take(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """As `Walk.take`."""
        for key, rows in arrays.items():
            kind, number, name = key.split(":", 2)
            if kind == _MOMENTS:
                self._seen[name] = LinearStatistics(int(number), rows[0], rows[1])
            else:
                self.coded.add(GGMLType(int(kind)), rows, int(number))

    def _takes(self, name: str) -> bool:
        kind = self.run.target_types.get(name)
        if kind is None or not kind.is_quantized:
            return False
        if kind not in GRID_TYPES:
            self.skipped.append((name, kind.name))
            return False
        return True
