"""A model on low-entropy grids inside an ordinary GGUF: the plan of a wire export, block by block.

Scales are folded, matrices rounded with feedback, blocks kept in a scratch folder until `export.gguf_file` writes
them. How small the result packs, and which scalar makes it fit, is left to `edgepack.pipeline.wire`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.errors import UnsupportedModelError
from edgepack.export.mapped_model import map_checkpoint
from edgepack.export.plan import PlanOptions, plan_export
from edgepack.export.wire.drift import DriftRun
from edgepack.export.wire.folding import input_groups
from edgepack.export.wire.grid import GridChooser
from edgepack.export.wire.layer import LayerFolder
from edgepack.export.wire.origins import Origins
from edgepack.export.wire.rounding import Rounding, WireResult, WireSettings
from edgepack.export.wire.stack import WireStack
from edgepack.gguf import keys
from edgepack.gguf.types import GGMLType, boolean, f32, string, u32
from edgepack.progress import silent
from edgepack.quant.codecs.ggml.host_grids import HOST_OF_TYPE, Host
from edgepack.quant.types.choice import Overrides
from edgepack.quant.types.targets import Target, find_target
from edgepack.quant.wire.grid import (
    TrellisRounding,
    round_matrix,
    row_scale,
)
from edgepack.quant.wire.rates import RateModel
from edgepack.quant.wire.trellis import Lanes

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.export.plan import PlannedTensor
    from edgepack.export.wire.drift import Drifted
    from edgepack.export.wire.folding import InputGroup
    from edgepack.export.wire.grid import WireGrid
    from edgepack.export.wire.layer import FoldedLayer
    from edgepack.export.wire.stack import Piece
    from edgepack.gguf.types import Value
    from edgepack.model import Checkpoint
    from edgepack.progress import Progress
    from edgepack.quant.calibration.curvature_store import CurvatureStore
    from edgepack.quant.feedback import FeedbackFactor

_TABLE = "token_embd.weight"
_ROW_FLOOR = 0.01  # of the mean output curvature, added to each row's
_TABLE_FLOOR = 0.05  # of the mean, for rows of embedding and head: tokens that the calibration text lacks


class WireModel:
    """A checkpoint that can be rounded again and again at different scales; it is only read.

    Args:
        checkpoint: the model.
        curvatures: of its matrices.
        settings: how it is rounded.
        tokens: [sequences, length], what drift is measured on; only needed where the settings ask for it.
        pre: the pre-tokenizer's name where its structure is not known.

    Raises:
        UnsupportedModelError: matrices without a curvature: experts, or what transformers does not run as a linear.
        EdgepackError: as `map_checkpoint`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        curvatures: CurvatureStore,
        settings: WireSettings,
        tokens: NDArray[np.int64],
        *,
        pre: str | None = None,
    ) -> None:
        self._checkpoint, self._tokens = checkpoint, tokens
        self._drifted: dict[str, Drifted] = {}  # of the layer in hand
        self.model = map_checkpoint(checkpoint, pre=pre)
        self.curvatures, self.settings = curvatures, settings
        self._origins = Origins(checkpoint, pre=pre)
        self._head = int(checkpoint.config.get("head_dim") or 0) or (
            int(checkpoint.config.get("hidden_size", 0)) // max(1, self.model.facts.n_heads)
        )
        self._grids = GridChooser(settings)
        self._folder = LayerFolder(self.model, self._hessian, settings.column_steps)
        self.base = plan_export(self.model, host_target(settings.host), PlanOptions(Overrides(pure=True)))
        self._planned = {tensor.info.name: tensor for tensor in self.base.tensors}
        self._check()

    @property
    def matrices(self) -> list[PlannedTensor]:
        """The tensors that go onto grids, in file order."""
        return [tensor for tensor in self.base.tensors if self._on_grid(tensor)]

    @property
    def weights(self) -> int:
        """Weights in all of them."""
        return sum(prod(tensor.info.shape) for tensor in self.matrices)

    def _on_grid(self, tensor: PlannedTensor) -> bool:
        return tensor.info.type in HOST_OF_TYPE and len(tensor.info.shape) == 2

    def _check(self) -> None:
        for tensor in self.base.tensors:
            quantised = tensor.info.type is not GGMLType.F32
            known = self._on_grid(tensor) and all(
                name in self.curvatures for name in self._origins.of(tensor.info.name).names
            )
            if quantised and not known:
                raise UnsupportedModelError(
                    f"wire: '{tensor.info.name}' {list(tensor.info.shape)} is not a linear layer's matrix that "
                    "calibration can watch: use a gguf-* target for this model"
                )

    def round(
        self, scale: float, scratch: Path, about: dict[str, Value] | None = None, progress: Progress = silent
    ) -> WireResult:
        """Put every matrix on its grid.

        Args:
            scale: the one scalar: steps are proportional to it, the predicted divergence to its square.
            scratch: a folder for the blocks; what it held of an earlier rounding is replaced.
            about: metadata to add.
            progress: told of each layer.

        Raises:
            NumericError: rows that do not fit the host, or a Hessian that is not positive semi-definite.
        """
        work, layers, settings = Rounding(scratch), self._layers(), self.settings
        drift = DriftRun(self._checkpoint, self._tokens, settings.device) if settings.drift else None
        with progress("Rounding", len(layers), " layers") as advance:
            for block, names in layers.items():
                self._drifted = drift.look(block) if drift is not None and block is not None else {}
                layer = self._round_layer(names, scale, work)
                if drift is not None:
                    self._advance(drift, block, names, layer, work)
                advance(1)
        return work.result(self.base, self._about(scale) | (about or {}))

    def keep_trellises(self, kept: bool) -> None:
        """Whether later roundings leave it as it is which matrices have a trellis; nothing is kept at first."""
        self._grids.keep(kept)

    def _round_layer(self, names: list[str], scale: float, work: Rounding) -> FoldedLayer:
        groups = self._groups(names)
        layer = self._folder.fold(groups)
        for group in groups:
            self._round_group(group, layer, scale, work)
        work.vectors |= layer.vectors
        return layer

    def _advance(
        self, drift: DriftRun, block: int | None, names: list[str], layer: FoldedLayer, work: Rounding
    ) -> None:
        """Let the rounded model run on with what a layer has become."""
        matrices = [name for name in names if self._on_grid(self._planned[name])]
        if block is not None:
            drift.advance(block, ((self._origins.of(n), layer.unfolded(n, work.rows(n))) for n in matrices))
        elif _TABLE in matrices:
            drift.embed(layer.unfolded(_TABLE, work.rows(_TABLE)))

    def _layers(self) -> dict[int | None, list[str]]:
        """Number of a layer → names of its tensors; those outside layers first, under None."""
        layers: dict[int | None, list[str]] = {None: []}
        for tensor in self.base.tensors:
            name = tensor.info.name
            layers.setdefault(int(name.split(".")[1]) if name.startswith("blk.") else None, []).append(name)
        return layers

    def _groups(self, names: list[str]) -> list[InputGroup]:
        on_grid = [tensor.info.name for tensor in self.matrices]
        matrices = [name for name in on_grid if name in set(names)]
        return input_groups(names, matrices, self.model.facts, self._head)

    def _hessian(self, group: InputGroup) -> torch.Tensor:
        name = self._origins.of(group.members[0]).names[0]
        drifted = self._drifted.get(name)
        hessian = (self.curvatures.inputs(name) if drifted is None else drifted.inputs).to(self.settings.device)
        return hessian if self.settings.feedback else torch.diag(hessian.diagonal())

    def _round_group(self, group: InputGroup, layer: FoldedLayer, scale: float, work: Rounding) -> None:
        """Matrices that read one input share its factor and are swept as one."""
        stack = self._stack(group, layer)
        host = HOST_OF_TYPE[stack.members[0].info.type]
        factor = layer.factors[group.members[0]]
        if stack.columns is not None:
            folds = torch.from_numpy(stack.columns).float().to(factor.upper.device)
            factor = replace(factor, upper=factor.upper / folds)
        grid = self._grids.choose(stack, host, factor, scale)
        for piece in stack.pieces(grid.code.rows if grid.code else 1):
            self._round_piece(piece, factor, grid, work)

    def _round_piece(self, piece: Piece, factor: FeedbackFactor, grid: WireGrid, work: Rounding) -> None:
        device = torch.device(self.settings.device)
        weights, relative = piece.weights.to(device), piece.relative.to(device)
        lattice = grid.lattice(relative)
        paths = None
        if grid.code is not None:
            rates = RateModel.of(weights, factor, lattice)
            lanes = Lanes.cut(piece.heights, grid.code.rows, rates.below())
            paths = TrellisRounding(grid.code, lanes, relative.square().reciprocal().float(), rates)
        rounded = round_matrix(weights, factor, lattice, pull=self.settings.rdo, paths=paths)
        raised = (rounded.lattice.factors > lattice.factors).any(1)
        error, start = (weights - rounded.weights).double().cpu(), 0
        for span, height in zip(piece.spans, piece.heights, strict=True):
            rows = slice(start, start + height)
            start += height
            work.store(span, grid.host, rounded, rows)
            work.count(span, int(raised[rows].sum()), _cost(error[rows], factor, piece.relative[rows]))

    def _stack(self, group: InputGroup, layer: FoldedLayer) -> WireStack:
        members = [self._planned[name] for name in group.members]
        relative = {name: self._relative(name) for name in group.members}
        drifted = self._drifted.get(self._origins.of(group.members[0]).names[0])
        mixing = None if drifted is None else drifted.mixing.double().numpy()
        return WireStack(members, self.model.tensors, layer, relative, mixing)

    def _relative(self, name: str) -> torch.Tensor:
        """Relative steps of a matrix's unfolded rows, float64 [out]."""
        relative = row_scale(self._outputs(name), _floor(name))
        if self.settings.allocation:
            return relative
        return relative / _geometric_mean(relative) * self._spread(name) * self._unit

    def _spread(self, name: str) -> float:
        """Root mean square of a matrix' weights."""
        rows = self.model.tensors[name]
        return float(np.sqrt(np.square(rows.read(0, rows.shape[0]), dtype=np.float64).mean()))

    @cached_property
    def _unit(self) -> float:
        """Step over spread of the weights that gives all matrices together the bits that steps by curvature give."""
        total = 0.0
        for tensor in self.matrices:
            name = tensor.info.name
            steps = _geometric_mean(row_scale(self._outputs(name), _floor(name)))
            total += prod(tensor.info.shape) * math.log(steps / self._spread(name))
        return math.exp(total / self.weights)

    def _outputs(self, name: str) -> torch.Tensor:
        """Curvature at the outputs [out], in the GGUF's order of rows."""
        origin = self._origins.of(name)
        outputs = torch.from_numpy(origin.gather({n: self.curvatures.outputs(n).numpy() for n in origin.names}))
        return outputs if self.settings.row_steps else torch.full_like(outputs, float(outputs.mean()))

    def _about(self, scale: float) -> dict[str, Value]:
        """Metadata on how the file was made; the archive's coder reads host and trellis."""
        return {
            keys.WIRE_HOST: string(self.settings.host.kind.name),
            keys.WIRE_SCALE: f32(scale),
            keys.WIRE_RDO: f32(self.settings.rdo),
            keys.WIRE_TRELLIS: u32(self.settings.trellis),
            keys.WIRE_DRIFT: boolean(self.settings.drift),
        }


def host_target(host: Host) -> Target:
    """llama.cpp's file type whose default tensor type is the host's."""
    names = {"Q8_0": "q8", "Q6_K": "q6k", "Q5_K": "q5ks", "Q4_K": "q4ks"}
    return find_target(f"gguf-{names[host.kind.name]}")


def _geometric_mean(values: torch.Tensor) -> float:
    return float(values.log().mean().exp())


def _floor(name: str) -> float:
    return _TABLE_FLOOR if name in (_TABLE, "output.weight") else _ROW_FLOOR


def _cost(error: torch.Tensor, factor: FeedbackFactor, relative: torch.Tensor) -> float:
    """½ · tr(G E H Eᵀ), the predicted divergence: G from the rows' relative steps, H from its factor."""
    solved = torch.linalg.solve_triangular(factor.upper.double().cpu().T, error.T, upper=False)
    return float(0.5 * (solved.square().sum(0) / relative.double().square()).sum())


__all__ = ["WireModel", "WireResult", "WireSettings", "host_target"]
