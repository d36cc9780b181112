"""One layer of a wire export: its folds and grids are decided and its matrices swept, group by group.

In which order layers come, and what an earlier one's rounding means for the next, is `plan`'s.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from edgepack.export.wire.fold_choice import choose_strength
from edgepack.export.wire.groups import goes_on_grid
from edgepack.export.wire.layer import FoldedLayer, LayerFolder
from edgepack.quant.codecs.ggml.host_grids import HOST_OF_TYPE
from edgepack.quant.wire.lanes import Lanes, TrellisRounding
from edgepack.quant.wire.rates import RateModel
from edgepack.quant.wire.rounding import round_matrix

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.export.mapped import MappedModel
    from edgepack.export.wire.folding import InputGroup
    from edgepack.export.wire.grid import GridChooser, WireGrid
    from edgepack.export.wire.groups import MatrixGroups
    from edgepack.export.wire.layer import Shape
    from edgepack.export.wire.rounding import Rounding, WireSettings
    from edgepack.export.wire.stack import Piece
    from edgepack.quant.wire.factor import SweepFactor

_FOLD = "fold "  # before a matrix' name: key of what was decided on its folds


class LayerRounding:
    """Rounds layers.

    Args:
        model: only read.
        groups: its matrices.
        grids: chooses their grids, and keeps what was decided on them and on folds.
        settings: how they are rounded.
        threads: that groups and sweeps share. Their number does not change a bit.

    Attributes:
        keeps: whether what was decided on a matrix before stays; may be set.
    """

    def __init__(
        self, model: MappedModel, groups: MatrixGroups, grids: GridChooser, settings: WireSettings, threads: int
    ) -> None:
        self._groups, self._grids, self._settings, self._threads = groups, grids, settings, threads
        self._folder = LayerFolder(model, groups.squares, settings.column_steps)
        self.keeps = False

    def alone(self) -> LayerRounding:
        """The same with one thread."""
        copied = copy.copy(self)
        copied._threads = 1  # noqa: SLF001 - a copy of its own
        return copied

    def plain_folds(self, groups: list[InputGroup]) -> FoldedLayer:
        """The folds of a layer before anything is known of scales."""
        return self._folder.fold(groups)

    def resume(self, layer: str, names: list[str], scale: float, work: Rounding) -> None:
        """Round a layer, unless an interrupted rounding did."""
        matrices = [tensor for tensor in map(self._groups.planned, names) if goes_on_grid(tensor)]
        key = repr((scale, self._settings, self._decided(names) if self.keeps else None))
        kept = work.resume(layer, key, matrices)
        if kept is not None:
            self._grids.pays_for |= kept
            work.vectors |= self._folder.fold(self._groups.of(names), self._shape(scale, True)).vectors
            return
        self.round(names, scale, work)
        decided = self._decided(names)
        work.finish(layer, key, matrices, decided)

    def round(self, names: list[str], scale: float, work: Rounding) -> FoldedLayer:
        """Round a layer into `work`; returns its folds."""
        groups = self._groups.of(names)
        layer = self._folder.fold(groups, self._shape(scale, self.keeps))
        if self._threads == 1:
            for group in groups:
                self._round_group(group, layer, scale, work, None)
        else:  # groups read, fold and encode side by side, and share the threads that sweep
            with ThreadPoolExecutor(self._threads) as tiles, ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(lambda group: self._round_group(group, layer, scale, work, tiles), groups))
        work.vectors |= layer.vectors
        return layer

    def _decided(self, names: list[str]) -> dict[str, int]:
        """What is decided on matrices."""
        keys_of = (key for name in names for key in (name, _FOLD + name))
        return {key: self._grids.pays_for[key] for key in keys_of if key in self._grids.pays_for}

    def _shape(self, scale: float, known: bool) -> Shape:
        """How strongly groups are folded at a scale; as decided before where that is `known`."""

        def shaped(group: InputGroup, even: NDArray[np.float64]) -> NDArray[np.float64]:
            key, stack = _FOLD + group.members[0], self._groups.stack(group, FoldedLayer())
            sample = self._groups.fold_sample(group, stack, even)
            decided = self._grids.pays_for
            if not (known and key in decided):
                grids = self._groups.grid_sample(group, stack)
                host = HOST_OF_TYPE[stack.members[0].info.type]
                decided[key] = choose_strength(
                    sample, host, scale, lambda scales: self._grids.cost(grids.folded(scales), host, scale)
                )
            return sample.scales(decided[key])

        return shaped

    def _round_group(
        self, group: InputGroup, layer: FoldedLayer, scale: float, work: Rounding, pool: Executor | None
    ) -> None:
        """Matrices that read one input share its factor and are swept as one; every expert has a factor of its own."""
        stack = self._groups.stack(group, layer)
        host, factor = HOST_OF_TYPE[stack.members[0].info.type], self._groups.factor(group, stack)
        grid = self._grids.choose(stack, host, factor, scale)
        if stack.experts == 1:
            for piece in stack.pieces(grid.code.rows if grid.code else 1):
                self._round_piece(piece, factor, grid, work, pool)
            return

        def round_expert(expert: int) -> None:
            self._round_piece(stack.expert(expert), self._groups.expert_factor(stack, expert), grid, work, None)

        list((map if pool is None else pool.map)(round_expert, range(stack.experts)))

    def _round_piece(
        self, piece: Piece, factor: SweepFactor, grid: WireGrid, work: Rounding, pool: Executor | None
    ) -> None:
        device = torch.device(self._settings.device)
        weights, relative = piece.weights.to(device), piece.relative.to(device)
        lattice = grid.lattice(relative)
        paths = None
        if grid.code is not None:
            rates = RateModel.of(weights, factor, lattice)
            lanes = Lanes.cut(piece.heights, grid.code.rows, rates.below())
            paths = TrellisRounding(grid.code, lanes, relative.square().reciprocal().float(), rates)
        rounded = round_matrix(weights, factor, lattice, pull=self._settings.rdo, paths=paths, pool=pool)
        raised = (rounded.lattice.factors > lattice.factors.cpu()).any(1)
        raised |= rounded.lattice.steps > lattice.steps.cpu()
        costs = 0.5 * rounded.losses / piece.relative.square()  # ½ · tr(G E H Eᵀ), the predicted divergence
        start = 0
        for span, height in zip(piece.spans, piece.heights, strict=True):
            rows = slice(start, start + height)
            start += height
            work.store(span, grid.host, rounded, rows)
            work.count(span, int(raised[rows].sum()), float(costs[rows].sum()))
