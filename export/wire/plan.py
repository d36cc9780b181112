"""A model on low-entropy grids inside an ordinary GGUF: the plan of a wire export, block by block.

Scales are folded, matrices rounded with feedback, blocks kept in a scratch folder until `export.gguf_file` writes
them. How small the result packs, and which scalar makes it fit, is left to `edgepack.pipeline.wire`.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar

from edgepack.errors import UnsupportedModelError
from edgepack.export.mapped_model import map_checkpoint
from edgepack.export.plan import PlanOptions, plan_export
from edgepack.export.wire.curvatures import MatrixCurvatures
from edgepack.export.wire.drift import DriftRun
from edgepack.export.wire.factors import FactorStore
from edgepack.export.wire.grid import UNION_STEP, GridChooser
from edgepack.export.wire.groups import MatrixGroups, goes_on_grid
from edgepack.export.wire.host_choice import HostChoice
from edgepack.export.wire.layer_rounding import LayerRounding
from edgepack.export.wire.origins import Origins
from edgepack.export.wire.rounding import Rounding, WireResult, WireSettings
from edgepack.export.wire.steps import TABLE
from edgepack.gguf import keys
from edgepack.gguf.types import GGMLType, boolean, f32, string, u32
from edgepack.processors import default_threads
from edgepack.progress import silent
from edgepack.quant.types.choice import Overrides
from edgepack.quant.types.targets import Target, find_target
from edgepack.quant.wire.prediction import Spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.crew import Crew
    from edgepack.export.plan import ExportPlan, PlannedTensor
    from edgepack.export.wire.layer import FoldedLayer
    from edgepack.gguf.types import Value
    from edgepack.model import Checkpoint
    from edgepack.progress import Progress
    from edgepack.quant.calibration.curvature_store import CurvatureStore
    from edgepack.quant.codecs.ggml.host_grids import Host


_WORK_BYTES = 40  # a weight of a layer's largest matrix, of memory: it, its lattice, its paths
MIXED = "mixed"  # in place of a host's name, where matrices have hosts of their own


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
        self._checkpoint, self._tokens = checkpoint, tokens
        self.model = map_checkpoint(checkpoint, pre=pre)
        self.curvatures, self.settings = curvatures, settings
        self._origins = Origins(checkpoint, pre=pre)
        head = int(checkpoint.config.get("head_dim") or 0) or (
            int(checkpoint.config.get("hidden_size", 0)) // max(1, self.model.facts.n_heads)
        )
        self._grids = GridChooser(settings)
        kept = f"unfolded-{int(settings.column_steps)}{int(settings.feedback)}"
        folder = None if settings.drift else curvatures.folder / kept
        plan = plan_export(self.model, host_target(settings.host), PlanOptions(Overrides(pure=True)))
        self._hosts: dict[str, GGMLType] = {}
        self._costs = MatrixCurvatures(curvatures, self._origins, checkpoint.tensors.specs)
        factors = FactorStore(folder, settings.feedback)
        self._groups = MatrixGroups(self.model, plan, self._costs, self._origins, factors, head, settings)
        self._layer = LayerRounding(self.model, self._groups, self._grids, settings, threads or default_threads())
        self._check()

    @property
    def base(self) -> ExportPlan:
        """The plan of the file, with the hosts of now and without what a rounding says of itself."""
        return self._groups.plan

    @property
    def matrices(self) -> list[PlannedTensor]:
        """The tensors that go onto grids, in file order."""
        return self._groups.matrices

    @cached_property
    def _watched(self) -> frozenset[str]:
        """Matrices that drift follows: experts are left as they were."""
        return frozenset(tensor.info.name for tensor in self.matrices if len(tensor.info.shape) == 2)

    @property
    def weights(self) -> int:
        """Weights in all of them."""
        return sum(prod(tensor.info.shape) for tensor in self.matrices)

    def _check(self) -> None:
        for tensor in self.base.tensors:
            quantised = tensor.info.type is not GGMLType.F32
            if quantised and not (goes_on_grid(tensor) and self._costs.known(tensor.info)):
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
        work, layers, settings = Rounding(scratch), self._groups.layers(), self.settings
        about = self._about(scale) | (about or {})
        if settings.memory and not (self._layer.keeps and self._hosts):
            self.hosts = HostChoice(self._groups, self._grids, settings).choose(scale, about)
        drift = DriftRun(self._checkpoint, self._tokens, settings.device) if settings.drift else None
        if self._crew is not None and drift is None:  # what workers round is taken as an interrupted rounding's is
            with progress("Rounding", len(layers), " layers") as advance:
                for _layer in self._by_layers(_round_layer, (scale, scratch)):
                    advance(1)
            progress = silent
        with progress("Rounding", len(layers), " layers") as advance:
            for block, names in layers.items():
                self._groups.drifted = drift.look(block) if drift is not None and block is not None else {}
                if drift is None:
                    self._layer.resume(f"layer-{block}", names, scale, work)
                else:
                    self._advance(drift, block, names, self._layer.round(names, scale, work), work)
                advance(1)
        return work.result(self.base, about)

    def predicted_bytes(self, scales: Sequence[float]) -> list[float]:
        """What archives at some scales will take, about: from a sample of rows, without rounding any.

        Raises:
            NumericError: as `round`.
        """
        others = sum(tensor.info.nbytes for tensor in self.base.tensors if not goes_on_grid(tensor))
        classes = sum(sum(tensor.info.shape) for tensor in self.matrices)  # a byte a row and column
        return [others + classes + sum(spread.bits(scale) for spread in self._spreads) / 8 for scale in scales]

    @cached_property
    def _spreads(self) -> list[Spread]:
        if self._crew is not None:
            return [spread for found in self._by_layers(_layer_spreads, None) for spread in found]
        return [spread for names in self._groups.layers().values() for spread in self.layer_spreads(names)]

    def layer_spreads(self, names: list[str]) -> list[Spread]:
        """Of every input group of a layer."""
        groups, found = self._groups.of(names), []
        layer = self._layer.plain_folds(groups)
        for group in groups:
            stack = self._groups.stack(group, layer)
            factor = self._groups.factor(group, stack)
            sample, relative = stack.sample()
            found.append(Spread.of(sample, relative * UNION_STEP, factor, stack.rows * stack.width))
        return found

    def _by_layers(self, work: Callable[[_LayerWork, int], Result], settings: Any) -> Iterator[Result]:
        """`work` on every layer by the crew, in order."""
        assert self._crew is not None
        layers = list(self._groups.layers().items())
        context = self._crew.share((self.alone(), settings, layers))

        def need(number: int) -> int:
            largest = max(map(self._groups.planned, layers[number][1]), key=lambda tensor: tensor.info.nbytes)
            return _WORK_BYTES * prod(largest.info.shape[-2:]) + 32 * largest.info.shape[-1] ** 2

        return self._crew.map(work, context, range(len(layers)), need=need, with_torch=True)

    def alone(self) -> WireModel:
        """The same for another process: with one thread, and without a crew."""
        copied = copy.copy(self)
        copied._layer, copied._crew = self._layer.alone(), None  # noqa: SLF001 - a copy of its own
        copied.__dict__.pop("_spreads", None)
        return copied

    def resume_layer(self, layer: str, names: list[str], scale: float, work: Rounding) -> None:
        """Round a layer, unless an interrupted rounding did."""
        self._layer.resume(layer, names, scale, work)

    def keep_trellises(self, kept: bool) -> None:
        """Whether later roundings leave hosts and trellises of matrices as they are; nothing is kept at first."""
        self._layer.keeps = kept
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
        self._groups.plan = replace(self.base, tensors=tuple(tensors))

    def _advance(
        self, drift: DriftRun, block: int | None, names: list[str], layer: FoldedLayer, work: Rounding
    ) -> None:
        """Let the rounded model run on with what a layer has become."""
        matrices = [name for name in names if name in self._watched]
        if block is not None:
            drift.advance(block, ((self._origins.of(n), layer.unfolded(n, work.rows(n))) for n in matrices))
        elif TABLE in matrices:
            drift.embed(layer.unfolded(TABLE, work.rows(TABLE)))

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
