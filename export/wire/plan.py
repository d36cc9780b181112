"""A model on low-entropy grids inside an ordinary GGUF: the plan of a wire export, block by block.

Scales are folded, matrices rounded with feedback, blocks kept in a scratch folder until `export.gguf_file` writes
them. How small the result packs, and which scalar makes it fit, is left to `edgepack.pipeline.wire`.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from edgepack.errors import UnsupportedModelError, UsageError
from edgepack.export.mapped_model import map_checkpoint
from edgepack.export.plan import PlanOptions, plan_export
from edgepack.export.wire.curvatures import MatrixCurvatures
from edgepack.export.wire.drift import DriftRun
from edgepack.export.wire.factors import FactorStore, typical_factor
from edgepack.export.wire.fold_choice import COARSE, FINE, FoldSample, choose_strength
from edgepack.export.wire.folding import input_groups
from edgepack.export.wire.grid import UNION_STEP, GridChooser, GridSample
from edgepack.export.wire.hosts import Offer, allocate, kinds_for
from edgepack.export.wire.layer import FoldedLayer, LayerFolder, evening
from edgepack.export.wire.origins import Origins
from edgepack.export.wire.rounding import Rounding, WireResult, WireSettings
from edgepack.export.wire.stack import WireStack
from edgepack.export.wire.steps import TABLE, RowSteps
from edgepack.gguf import keys
from edgepack.gguf.types import GGMLType, boolean, f32, string, u32
from edgepack.processors import default_threads
from edgepack.progress import silent
from edgepack.quant.codecs.ggml.host_grids import HOST_OF_TYPE, Host
from edgepack.quant.types.choice import Overrides
from edgepack.quant.types.targets import Target, find_target
from edgepack.quant.wire.lanes import Lanes, TrellisRounding
from edgepack.quant.wire.prediction import Spread
from edgepack.quant.wire.rates import RateModel
from edgepack.quant.wire.rounding import round_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.crew import Crew
    from edgepack.export.plan import PlannedTensor
    from edgepack.export.wire.drift import Drifted
    from edgepack.export.wire.folding import InputGroup
    from edgepack.export.wire.grid import WireGrid
    from edgepack.export.wire.layer import Shape
    from edgepack.export.wire.stack import Piece
    from edgepack.gguf.types import Value
    from edgepack.model import Checkpoint
    from edgepack.progress import Progress
    from edgepack.quant.calibration.curvature_store import CurvatureStore
    from edgepack.quant.wire.factor import SweepFactor


_FOLD = "fold "  # before a matrix' name: key of what was decided on its folds
_WORK_BYTES = 40  # a weight of a layer's largest matrix, of memory: it, its lattice, its paths
_FOLD_ROWS = 32  # on which folds and hosts are compared
MIXED = "mixed"  # in place of a host's name, where matrices have hosts of their own
GGUF_ALIGNMENT = 32  # of a tensor: its padding is less


Result = TypeVar("Result")


class WireModel:
    """A checkpoint that can be rounded again and again at different scales; it is only read.

    Args:
        checkpoint: the model.
        curvatures: of its matrices.
        settings: how it is rounded.
        tokens: [sequences, length], what drift is measured on; only needed where the settings ask for it.
        pre: the pre-tokenizer's name where its structure is not known.
        threads: of the rounding; None for one a processor. Their number does not change a bit.
        crew: who rounds, layer by layer, in the scratch folder, in place of threads; None for this process.

    Raises:
        UnsupportedModelError: matrices without a curvature: what transformers does not run as a linear layer.
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
        threads: int | None = None,
        crew: Crew | None = None,
    ) -> None:
        self._crew = crew
        self._threads = threads or default_threads()
        self._checkpoint, self._tokens = checkpoint, tokens
        self._drifted: dict[str, Drifted] = {}  # of the layer in hand
        self.model = map_checkpoint(checkpoint, pre=pre)
        self.curvatures, self.settings = curvatures, settings
        self._origins = Origins(checkpoint, pre=pre)
        self._head = int(checkpoint.config.get("head_dim") or 0) or (
            int(checkpoint.config.get("hidden_size", 0)) // max(1, self.model.facts.n_heads)
        )
        self._grids = GridChooser(settings)
        kept = f"unfolded-{int(settings.column_steps)}{int(settings.feedback)}"
        folder = None if settings.drift else curvatures.folder / kept
        self._factors = FactorStore(folder, settings.feedback)
        self._folder = LayerFolder(self.model, self._squares, settings.column_steps)
        self.base = plan_export(self.model, host_target(settings.host), PlanOptions(Overrides(pure=True)))
        self._planned = {tensor.info.name: tensor for tensor in self.base.tensors}
        self._kept = False
        self._hosts: dict[str, GGMLType] = {}
        self._costs = MatrixCurvatures(curvatures, self._origins, checkpoint.tensors.specs)
        self._steps = RowSteps(self.matrices, self.model.tensors, self._costs, settings.row_steps, settings.allocation)
        self._check()

    @property
    def matrices(self) -> list[PlannedTensor]:
        """The tensors that go onto grids, in file order."""
        return [tensor for tensor in self.base.tensors if self._on_grid(tensor)]

    @cached_property
    def _watched(self) -> frozenset[str]:
        """Matrices that drift follows: experts are left as they were."""
        return frozenset(tensor.info.name for tensor in self.matrices if len(tensor.info.shape) == 2)

    @property
    def weights(self) -> int:
        """Weights in all of them."""
        return sum(prod(tensor.info.shape) for tensor in self.matrices)

    def _on_grid(self, tensor: PlannedTensor) -> bool:
        return tensor.info.type in HOST_OF_TYPE and len(tensor.info.shape) in (2, 3)

    def _check(self) -> None:
        for tensor in self.base.tensors:
            quantised = tensor.info.type is not GGMLType.F32
            if quantised and not (self._on_grid(tensor) and self._costs.known(tensor.info)):
                raise UnsupportedModelError(
                    f"wire: '{tensor.info.name}' {list(tensor.info.shape)} is not a linear layer's matrix that "
                    "calibration can watch: use a gguf-* target for this model"
                )
            if quantised and self.settings.drift and not self._origins.of(tensor.info.name).is_plain:
                raise UnsupportedModelError(
                    f"wire: '{tensor.info.name}' is not as the checkpoint has it (its columns stand in another order,"
                    " or its rows are scaled), which --drift cannot follow"
                )

    def round(
        self, scale: float, scratch: Path, about: dict[str, Value] | None = None, progress: Progress = silent
    ) -> WireResult:
        """Put every matrix on its grid.

        Args:
            scale: the one scalar: steps are proportional to it, the predicted divergence to its square.
            scratch: a folder for the blocks; what it held of an earlier rounding is replaced, but layers that an
                interrupted rounding at this scale had finished are taken as they are.
            about: metadata to add.
            progress: told of each layer.

        Raises:
            NumericError: rows that do not fit the host, or a Hessian that is not positive semi-definite.
        """
        work, layers, settings = Rounding(scratch), self._layers(), self.settings
        about = self._about(scale) | (about or {})
        if settings.memory and not (self._kept and self._hosts):
            self.hosts = self._allocated(scale, about)
        drift = DriftRun(self._checkpoint, self._tokens, settings.device) if settings.drift else None
        if self._crew is not None and drift is None:  # what workers round is taken as an interrupted rounding's is
            with progress("Rounding", len(layers), " layers") as advance:
                for _layer in self._by_layers(_round_layer, (scale, scratch)):
                    advance(1)
            progress = silent
        with progress("Rounding", len(layers), " layers") as advance:
            for block, names in layers.items():
                self._drifted = drift.look(block) if drift is not None and block is not None else {}
                if drift is None:
                    self.resume_layer(f"layer-{block}", names, scale, work)
                else:
                    self._advance(drift, block, names, self._round_layer(names, scale, work), work)
                advance(1)
        return work.result(self.base, about)

    def predicted_bytes(self, scales: Sequence[float]) -> list[float]:
        """What archives at some scales will take, about: from a sample of rows, without rounding any.

        Raises:
            NumericError: as `round`.
        """
        others = sum(tensor.info.nbytes for tensor in self.base.tensors if not self._on_grid(tensor))
        classes = sum(sum(tensor.info.shape) for tensor in self.matrices)  # a byte a row and column
        return [others + classes + sum(spread.bits(scale) for spread in self._spreads) / 8 for scale in scales]

    @cached_property
    def _spreads(self) -> list[Spread]:
        if self._crew is not None:
            return [spread for found in self._by_layers(_layer_spreads, None) for spread in found]
        return [spread for names in self._layers().values() for spread in self.layer_spreads(names)]

    def layer_spreads(self, names: list[str]) -> list[Spread]:
        """Of every input group of a layer."""
        groups, found = self._groups(names), []
        layer = self._folder.fold(groups)
        for group in groups:
            stack = self._stack(group, layer)
            factor = self._factor(group, stack)
            sample, relative = stack.sample()
            found.append(Spread.of(sample, relative * UNION_STEP, factor, stack.rows * stack.width))
        return found

    def _by_layers(self, work: Callable[[_LayerWork, int], Result], settings: Any) -> Iterator[Result]:
        """`work` on every layer by the crew, in order."""
        assert self._crew is not None
        layers = list(self._layers().items())
        context = self._crew.share((self.alone(), settings, layers))

        def need(number: int) -> int:
            largest = max((self._planned[name] for name in layers[number][1]), key=lambda tensor: tensor.info.nbytes)
            return _WORK_BYTES * prod(largest.info.shape[-2:]) + 32 * largest.info.shape[-1] ** 2

        return self._crew.map(work, context, range(len(layers)), need=need, with_torch=True)

    def alone(self) -> WireModel:
        """The same for another process: with one thread, and without a crew."""
        copied = copy.copy(self)
        copied._threads, copied._crew = 1, None  # noqa: SLF001 - a copy of its own
        copied.__dict__.pop("_spreads", None)
        copied._folder = LayerFolder(copied.model, copied._squares, copied.settings.column_steps)  # noqa: SLF001
        return copied

    def keep_trellises(self, kept: bool) -> None:
        """Whether later roundings leave hosts and trellises of matrices as they are; nothing is kept at first."""
        self._kept = kept
        self._grids.keep(kept)

    @property
    def trellises(self) -> dict[str, int]:
        """What the last rounding decided: first matrix of a stack → whether it has a trellis; may be set.

        Under `fold NAME` the strength of its folds (`fold_choice.STRENGTHS`).
        """
        return self._grids.pays_for

    @trellises.setter
    def trellises(self, decided: Mapping[str, int]) -> None:
        self._grids.pays_for = dict(decided)

    @property
    def hosts(self) -> dict[str, GGMLType]:
        """Matrix → its host, where a budget of memory chose it; may be set."""
        return dict(self._hosts)

    @hosts.setter
    def hosts(self, chosen: Mapping[str, GGMLType]) -> None:
        self._hosts = dict(chosen)
        tensors = (
            replace(tensor, info=replace(tensor.info, type=chosen.get(tensor.info.name, tensor.info.type)))
            for tensor in self.base.tensors
        )
        self.base = replace(self.base, tensors=tuple(tensors))
        self._planned = {tensor.info.name: tensor for tensor in self.base.tensors}

    def _allocated(self, scale: float, about: Mapping[str, Value]) -> dict[str, GGMLType]:
        """Hosts of all matrices with which the file keeps to its memory.

        Raises:
            UsageError: it is larger even with the smallest; the text says how large.
        """
        members, offers = [], []
        for names in self._layers().values():
            for group in self._groups(names):
                members.append(group.members)
                offers.append(self._offers(group, scale))
        matrices = sum(tensor.info.nbytes for tensor in self.matrices)
        whole = replace(self.base, metadata={**self.base.metadata, **about}).total_bytes
        fixed = whole - matrices + GGUF_ALIGNMENT * len(self.matrices)
        least = fixed + sum(min(offer.bytes for offer in group) for group in offers)
        if least > self.settings.memory:
            raise UsageError(
                f"--max-memory: expected at least {least} bytes, the least that this model takes on the device, got"
                f" {self.settings.memory}"
            )
        chosen = allocate(offers, self.settings.memory - fixed)
        return {name: offer.kind for names, offer in zip(members, chosen, strict=True) for name in names}

    def _offers(self, group: InputGroup, scale: float) -> list[Offer]:
        stack = self._stack(group, FoldedLayer())
        own, weights = stack.members[0].info.type, stack.rows * stack.width
        sample = FoldSample(*stack.sample(), evening(self._squares(group)), self._squares(group))
        grids = GridSample.of(stack, self._factor(group, stack), _FOLD_ROWS)
        folds = self.settings.column_steps and (group.norm is not None or group.producer is not None)
        found = []
        for kind in kinds_for(stack.width) or (own,):
            host = HOST_OF_TYPE[kind]
            strength = FINE if host.reach > 31 else COARSE
            folded = grids.folded(sample.scales(strength)) if folds else grids
            cost = self._grids.cost(folded, host, scale)
            cost += sample.activations(strength, host, scale) if folds else 0.0
            found.append(Offer(kind, stack.rows * kind.row_bytes(stack.width), weights * cost))
        return found

    def resume_layer(self, layer: str, names: list[str], scale: float, work: Rounding) -> None:
        """Round a layer, unless an interrupted rounding did."""
        matrices = [self._planned[name] for name in names if self._on_grid(self._planned[name])]
        key = repr((scale, self.settings, self._decided(names) if self._kept else None))
        kept = work.resume(layer, key, matrices)
        if kept is not None:
            self._grids.pays_for |= kept
            work.vectors |= self._folder.fold(self._groups(names), self._shape(scale, True)).vectors
            return
        self._round_layer(names, scale, work)
        decided = self._decided(names)
        work.finish(layer, key, matrices, decided)

    def _decided(self, names: list[str]) -> dict[str, int]:
        """What is decided on matrices."""
        keys_of = (key for name in names for key in (name, _FOLD + name))
        return {key: self._grids.pays_for[key] for key in keys_of if key in self._grids.pays_for}

    def _shape(self, scale: float, known: bool) -> Shape:
        """How strongly groups are folded at a scale; as decided before where that is `known`."""

        def shaped(group: InputGroup, even: NDArray[np.float64]) -> NDArray[np.float64]:
            key, stack = _FOLD + group.members[0], self._stack(group, FoldedLayer())
            sample = FoldSample(*stack.sample(), even, self._squares(group))
            decided = self._grids.pays_for
            if not (known and key in decided):
                grids = GridSample.of(stack, self._factor(group, stack), _FOLD_ROWS)
                host = HOST_OF_TYPE[stack.members[0].info.type]
                decided[key] = choose_strength(
                    sample, host, scale, lambda scales: self._grids.cost(grids.folded(scales), host, scale)
                )
            return sample.scales(decided[key])

        return shaped

    def _round_layer(self, names: list[str], scale: float, work: Rounding) -> FoldedLayer:
        groups = self._groups(names)
        layer = self._folder.fold(groups, self._shape(scale, self._kept))
        if self._threads == 1:
            for group in groups:
                self._round_group(group, layer, scale, work, None)
        else:  # groups read, fold and encode side by side, and share the threads that sweep
            with ThreadPoolExecutor(self._threads) as tiles, ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(lambda group: self._round_group(group, layer, scale, work, tiles), groups))
        work.vectors |= layer.vectors
        return layer

    def _advance(
        self, drift: DriftRun, block: int | None, names: list[str], layer: FoldedLayer, work: Rounding
    ) -> None:
        """Let the rounded model run on with what a layer has become."""
        matrices = [name for name in names if name in self._watched]
        if block is not None:
            drift.advance(block, ((self._origins.of(n), layer.unfolded(n, work.rows(n))) for n in matrices))
        elif TABLE in matrices:
            drift.embed(layer.unfolded(TABLE, work.rows(TABLE)))

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
        drifted = self._drifts(group)
        found = self._costs.inputs(self._planned[group.members[0]].info) if drifted is None else drifted.inputs
        return found.to(self.settings.device)

    def _squares(self, group: InputGroup) -> NDArray[np.float64]:
        drifted = self._drifts(group)
        if drifted is None:
            return self._costs.squares(self._planned[group.members[0]].info)
        return np.asarray(drifted.inputs.diagonal().double().numpy())

    def _drifts(self, group: InputGroup) -> Drifted | None:
        return self._drifted.get(self._origins.of(group.members[0]).names[0]) if self._drifted else None

    def _round_group(
        self, group: InputGroup, layer: FoldedLayer, scale: float, work: Rounding, pool: Executor | None
    ) -> None:
        """Matrices that read one input share its factor and are swept as one; every expert has a factor of its own."""
        stack = self._stack(group, layer)
        host, factor = HOST_OF_TYPE[stack.members[0].info.type], self._factor(group, stack)
        grid = self._grids.choose(stack, host, factor, scale)
        if stack.experts == 1:
            for piece in stack.pieces(grid.code.rows if grid.code else 1):
                self._round_piece(piece, factor, grid, work, pool)
            return

        def round_expert(expert: int) -> None:
            self._round_piece(stack.expert(expert), self._expert_factor(stack, expert), grid, work, None)

        list((map if pool is None else pool.map)(round_expert, range(stack.experts)))

    def _factor(self, group: InputGroup, stack: WireStack) -> SweepFactor:
        """Of a group's inputs; of experts what all of them are like, without coefficients."""
        if stack.experts > 1:
            return typical_factor(self._expert_factor(stack, expert) for expert in range(stack.experts))
        return self._factors.get(group.members[0], lambda: self._hessian(group), stack.columns)

    def _expert_factor(self, stack: WireStack, expert: int) -> SweepFactor:
        info = stack.members[0].info
        return self._factors.get(self._costs.inputs_of(info, expert), lambda: self._costs.inputs(info, expert))

    def _round_piece(
        self, piece: Piece, factor: SweepFactor, grid: WireGrid, work: Rounding, pool: Executor | None
    ) -> None:
        device = torch.device(self.settings.device)
        weights, relative = piece.weights.to(device), piece.relative.to(device)
        lattice = grid.lattice(relative)
        paths = None
        if grid.code is not None:
            rates = RateModel.of(weights, factor, lattice)
            lanes = Lanes.cut(piece.heights, grid.code.rows, rates.below())
            paths = TrellisRounding(grid.code, lanes, relative.square().reciprocal().float(), rates)
        rounded = round_matrix(weights, factor, lattice, pull=self.settings.rdo, paths=paths, pool=pool)
        raised = (rounded.lattice.factors > lattice.factors.cpu()).any(1)
        raised |= rounded.lattice.steps > lattice.steps.cpu()
        costs = 0.5 * rounded.losses / piece.relative.square()  # ½ · tr(G E H Eᵀ), the predicted divergence
        start = 0
        for span, height in zip(piece.spans, piece.heights, strict=True):
            rows = slice(start, start + height)
            start += height
            work.store(span, grid.host, rounded, rows)
            work.count(span, int(raised[rows].sum()), float(costs[rows].sum()))

    def _stack(self, group: InputGroup, layer: FoldedLayer) -> WireStack:
        members = [self._planned[name] for name in group.members]
        relative = {tensor.info.name: self._steps.of(tensor) for tensor in members}
        drifted = self._drifts(group)
        mixing = None if drifted is None else drifted.mixing.double().numpy()
        return WireStack(members, self.model.tensors, layer, relative, mixing)

    def _about(self, scale: float) -> dict[str, Value]:
        """Metadata on how the file was made; the archive's coder reads host and trellis."""
        return {
            keys.WIRE_HOST: string(MIXED if self.settings.memory else self.settings.host.kind.name),
            keys.WIRE_SCALE: f32(scale),
            keys.WIRE_RDO: f32(self.settings.rdo),
            keys.WIRE_TRELLIS: u32(self.settings.trellis),
            keys.WIRE_DRIFT: boolean(self.settings.drift),
        }


# A model as workers take it up, what else the work needs, and number and tensors of every layer.
_LayerWork = tuple[WireModel, Any, list[tuple[int | None, list[str]]]]


def _round_layer(context: _LayerWork, number: int) -> None:
    """Round one layer into the scratch folder; what a worker does."""
    model, (scale, scratch), layers = context
    block, names = layers[number]
    model.resume_layer(f"layer-{block}", names, scale, Rounding(scratch))


def _layer_spreads(context: _LayerWork, number: int) -> list[Spread]:
    """What predictions of one layer stand on; what a worker does."""
    return context[0].layer_spreads(context[2][number][1])


def host_target(host: Host) -> Target:
    """llama.cpp's file type whose default tensor type is the host's."""
    names = {"Q8_0": "q8", "Q6_K": "q6k", "Q5_K": "q5ks", "Q4_K": "q4ks"}
    return find_target(f"gguf-{names[host.kind.name]}")


__all__ = ["WireModel", "WireResult", "WireSettings", "host_target"]
