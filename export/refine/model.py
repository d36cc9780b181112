"""A model whose ordinary GGUF is refined: types allocated within a budget, matrices rounded by their curvature.

What is found lies in a scratch folder, so that an interrupted run goes on with it and other budgets share it. Measuring
curvature is `quant.calibration`'s, rounding one matrix `quant.refine.rounding`'s, which budget is wanted the caller's.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.errors import UsageError
from edgepack.export.mapped_model import map_checkpoint
from edgepack.export.refine.crew import crew_matrices, predict, round_kept
from edgepack.export.refine.matrices import CurvedMatrices
from edgepack.export.refine.predictions import Predictions
from edgepack.export.refine.prospects import Prospect, fitting
from edgepack.export.refine.reading import read_share
from edgepack.export.refine.values import Allocation, RefinedFile, RefineSettings
from edgepack.export.wire.curvatures import MatrixCurvatures
from edgepack.export.wire.origins import Origins
from edgepack.export.wire.rounding import ScratchRows
from edgepack.files.output import atomic_output
from edgepack.ordered_threads import ordered_map
from edgepack.processors import default_threads
from edgepack.progress import silent
from edgepack.quant.codecs.torch_threads import one_thread
from edgepack.quant.refine.allocation import Choice, allocate, least_bytes, least_cost, segments, total
from edgepack.quant.refine.rounding import REFINED_TYPES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from edgepack.crew import Crew
    from edgepack.export.plan import ExportPlan, PlannedTensor
    from edgepack.gguf.types import GGMLType, TensorInfo
    from edgepack.model import Checkpoint
    from edgepack.progress import Progress
    from edgepack.quant.calibration.curvature_store import CurvatureStore
    from edgepack.quant.refine.input_rounding import InputRounding

_LARGE = 1 << 22  # weights of a matrix whose rows are shared by the threads; smaller ones are rounded side by side


class RefinedModel:
    """A checkpoint that can be planned and rounded at any budget; it is only read.

    Args:
        checkpoint: the model.
        curvatures: of its matrices.
        inputs: how what they read is rounded, by the checkpoint's names; empty to count no such rounding.
        settings: how it is refined.
        scratch: a folder of this model, text and settings alone; what an interrupted run left there counts.
        pre: the pre-tokenizer's name where its structure is not known.
        threads: None for one a processor. Their number does not change a bit.
        progress: told of matrices.
        crew: who predicts and rounds, in `scratch`, in place of threads; None for this process.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        curvatures: CurvatureStore,
        inputs: Mapping[str, InputRounding],
        settings: RefineSettings,
        scratch: Path,
        *,
        pre: str | None = None,
        threads: int | None = None,
        progress: Progress = silent,
        crew: Crew | None = None,
    ) -> None:
        self._crew = crew
        self.model = map_checkpoint(checkpoint, pre=pre)
        self.checkpoint, self.settings, self.scratch = checkpoint, settings, scratch
        self._costs = MatrixCurvatures(curvatures, Origins(checkpoint, pre=pre), checkpoint.tensors.specs)
        self._curved = CurvedMatrices(self._costs, settings, scratch)
        self._predictions = Predictions(self._curved, inputs, settings, scratch)
        self._threads, self._progress = threads or default_threads(), progress
        self._known: dict[str, Prospect] = {}
        self._matrices: list[PlannedTensor] = []  # of the plan in hand
        self._rate, self._free = 0.0, frozenset[str]()

    def refinable(self, plan: ExportPlan) -> list[PlannedTensor]:
        """The quantised tensors of a plan that have a curvature, in file order."""
        return [tensor for tensor in plan.tensors if self._curved.has(tensor)]

    def without_curvature(self, plan: ExportPlan) -> tuple[str, ...]:
        """The quantised tensors that have none."""
        return tuple(t.info.name for t in plan.tensors if t.info.type.is_quantized and not self._curved.has(t))

    def allocation(self, plan: ExportPlan, budget: int, fixed: frozenset[str] = frozenset()) -> Allocation:
        """Types for `plan`'s tensors so that the file has at most `budget` bytes and costs least.

        Where the plan's own types fit and are predicted to cost no more, they stay.

        Args:
            plan: names every tensor's type where nothing is allocated; its metadata is final.
            budget: bytes of the file.
            fixed: tensors that keep the plan's type.

        Raises:
            UsageError: the budget is below the least that the tensors take.
        """
        items, own = self._items(plan, fixed)
        rest = plan.total_bytes - total(items, own).bytes
        if (least := rest + least_bytes(items)) > budget:
            raise UsageError(f"size: expected at least {least} bytes, the least that this model takes, got {budget}")
        chosen, tensors = self._best(items, own, budget - rest), self.refinable(plan)
        if self.settings.prefer_speed:
            chosen = self._best(self._slowed(items, chosen, tensors), own, budget - rest)
        found = total(items, chosen)
        types = {t.info.name: self._choices(t, fixed)[n] for t, n in zip(tensors, chosen, strict=True)}
        return Allocation(types, rest + found.bytes, found.cost)

    def _best(self, items: list[list[Choice]], own: list[int], most: int) -> list[int]:
        """What allocation finds, or the plan's own types where they fit and cost no more."""
        chosen, stock = allocate(items, most), total(items, own)
        return own if stock.bytes <= most and stock.cost <= total(items, chosen).cost else chosen

    def _slowed(self, items: list[list[Choice]], chosen: list[int], tensors: list[PlannedTensor]) -> list[list[Choice]]:
        """Choices that cost more where a token reads more: a hundredth of the time as much as one of the divergence.

        So divergence times time is least, to first order about `chosen`.
        """
        shares = [read_share(tensor.info.name, self.model) for tensor in tensors]
        read = sum(share * of[n].bytes for share, of, n in zip(shares, items, chosen, strict=True))
        price = total(items, chosen).cost / max(read, 1.0)
        return [
            [replace(choice, cost=choice.cost + price * share * choice.bytes) for choice in of]
            for share, of in zip(shares, items, strict=True)
        ]

    def least_bytes(self, plan: ExportPlan, fixed: frozenset[str] = frozenset()) -> int:
        """Of a file whose tensors have the smallest type that they may have."""
        items, own = self._items(plan, fixed)
        return plan.total_bytes - total(items, own).bytes + least_bytes(items)

    def budget_for(self, plan: ExportPlan, divergence: float, fixed: frozenset[str] = frozenset()) -> int:
        """About the least bytes with which a divergence is predicted: on the line between two steps of the path."""
        items, own = self._items(plan, fixed)
        size, cost = plan.total_bytes - total(items, own).bytes + least_bytes(items), least_cost(items)
        for segment in segments(items):
            if cost <= divergence:
                break
            share = min(1.0, (cost - divergence) / segment.gain)
            size, cost = size + int(share * segment.bytes), cost - share * segment.gain
        return size

    def _items(self, plan: ExportPlan, fixed: frozenset[str]) -> tuple[list[list[Choice]], list[int]]:
        """Choices of every tensor with a curvature, and which of them the plan has."""
        tensors = self._matrices = self.refinable(plan)
        prospects = self.prospects(tensors)
        kinds = [self._choices(tensor, fixed) for tensor in tensors]
        items = [self._priced(t, prospects[t.info.name], of, plan) for t, of in zip(tensors, kinds, strict=True)]
        return items, [of.index(tensor.info.type) for tensor, of in zip(tensors, kinds, strict=True)]

    def _choices(self, tensor: PlannedTensor, fixed: frozenset[str]) -> tuple[GGMLType, ...]:
        if not self.settings.allocation or tensor.info.name in fixed:
            return (tensor.info.type,)
        return fitting(tensor)

    def _priced(
        self, tensor: PlannedTensor, prospect: Prospect, kinds: Iterable[GGMLType], plan: ExportPlan
    ) -> list[Choice]:
        align = plan.layout.alignment
        sizes = [replace(tensor.info, type=kind).nbytes for kind in kinds]
        gpu, gains, left = self.settings.on_gpu, self._gains, prospect.joint
        together = {kind: left if kind in REFINED_TYPES else 1.0 for kind in kinds}
        costs = [prospect.cost(kind, on_gpu=gpu, gain=gains.get(kind, 1.0) * together[kind]) for kind in kinds]
        return [Choice(size + -size % align, cost) for size, cost in zip(sizes, costs, strict=True)]

    def prospects(self, tensors: Iterable[PlannedTensor]) -> dict[str, Prospect]:
        """What every type is predicted to cost every tensor; kept in the scratch folder."""
        missing = [tensor for tensor in tensors if tensor.info.name not in self._known]
        self._predictions.folder()
        with one_thread(), self._progress("Predicting", len(missing), " matrices") as advance:
            if self._crew is not None:  # what the workers find lies in the folder then
                crew_matrices(self, predict, missing, self._crew, advance)
            for name, found in ordered_map(self.prospect, missing, self._threads, size=_read_bytes):
                self._known[name] = found
                if self._crew is None:
                    advance(1)
        return self._known

    def prospect(self, tensor: PlannedTensor) -> tuple[str, Prospect]:
        """A tensor's name, and what every type is predicted to cost it; kept in the scratch folder."""
        return self._predictions.of(tensor)

    @cached_property
    def _gains(self) -> dict[GGMLType, float]:
        """What refinement leaves of the loss of plain feedback, by type."""
        return self._predictions.gains(self._matrices, self._threads)

    def alone(self) -> RefinedModel:
        """The same for another process: with one thread, and nobody who is told."""
        copied = copy.copy(self)
        copied._threads, copied._progress, copied._crew = 1, silent, None  # noqa: SLF001 - a copy of its own
        copied._known, copied._matrices = {}, []  # noqa: SLF001
        return copied

    def at_rate(self, rate: float, free: Collection[str] = ()) -> RefinedModel:
        """The same whose matrices, but those `free` of it, are rounded so that a bit is worth `rate` nats a token."""
        copied = copy.copy(self)
        copied._rate, copied._free = rate, frozenset(free)  # noqa: SLF001 - a copy of its own
        return copied

    def dearest_at(self, rate: float, plan: ExportPlan, allocation: Allocation) -> list[str]:
        """The matrices of a plan, first the one whose loss a rate raises most for each of its weights.

        Both ways of rounding are needed: what is not kept yet is made.
        """
        with_rate, without = (self.at_rate(each).rounded(plan, allocation).losses for each in (rate, 0.0))
        weights = {tensor.info.name: prod(tensor.info.shape) for tensor in plan.tensors}
        return sorted(without, key=lambda name: (without[name] - with_rate[name]) / weights[name])

    def rounded(self, plan: ExportPlan, allocation: Allocation) -> RefinedFile:
        """Round every tensor of `plan` that has a curvature to the type that it was allocated; what is kept is taken.

        Raises:
            NumericError: a Hessian that is not positive semi-definite.
        """
        plan = self.allocated(plan, allocation)
        rounded, losses = [t for t in plan.tensors if t.info.name in allocation.kinds], dict[str, float]()
        (self.scratch / "rows").mkdir(exist_ok=True)
        with one_thread(), self._progress("Rounding", len(rounded), " matrices") as advance:
            if self._crew is not None:
                crew_matrices(self, round_kept, rounded, self._crew, advance)
            for name, loss in ordered_map(self.round_kept, rounded, self._threads, size=_read_bytes):
                losses[name] = loss
                if self._crew is None:
                    advance(1)
        made = {tensor.info.name: self._stored(tensor) for tensor in rounded}
        finished = tuple(replace(t, rows=made.get(t.info.name, t.rows)) for t in plan.tensors)
        return RefinedFile(
            replace(plan, tensors=finished), losses, self._input_cost(allocation), self.without_curvature(plan)
        )

    def allocated(self, plan: ExportPlan, allocation: Allocation) -> ExportPlan:
        """The plan with its tensors in their new types; none has the importance that only chose the plan's mixture."""
        kinds = {tensor.info.name: allocation.kinds.get(tensor.info.name, tensor.info.type) for tensor in plan.tensors}
        tensors = (replace(t, info=replace(t.info, type=kinds[t.info.name]), importance=None) for t in plan.tensors)
        return replace(plan, tensors=tuple(tensors))

    def _input_cost(self, allocation: Allocation) -> float:
        of = {name: (self._known[name], kind) for name, kind in allocation.kinds.items()}
        gpu = self.settings.on_gpu
        return sum(known.cost(kind, on_gpu=gpu) - known.weights[kind] for known, kind in of.values())

    def _stored(self, tensor: PlannedTensor) -> ScratchRows:
        info = tensor.info
        return ScratchRows(self._rows_path(info), info.type, info.shape, tensor.rows.dtype)

    def _rate_of(self, info: TensorInfo) -> float:
        return 0.0 if info.name in self._free else self._rate

    def _rows_path(self, info: TensorInfo) -> Path:
        rate = self._rate_of(info)
        rated = f".{rate.hex()}" if rate else ""
        return self.scratch / "rows" / f"{info.name}.{info.type.name}{rated}"

    def round_kept(self, tensor: PlannedTensor) -> tuple[str, float]:
        """Round a tensor into its scratch file, unless that was done; gives its name and loss."""
        path = self._rows_path(tensor.info)
        note = path.with_name(f"{path.name}.json")
        if not note.is_file():
            loss = self._rounded_into(tensor, path)
            with atomic_output(note) as stream:
                stream.write(json.dumps(loss).encode())
        return tensor.info.name, float(json.loads(note.read_text()))

    def _rounded_into(self, tensor: PlannedTensor, path: Path) -> float:
        """Write a tensor's blocks, matrix by matrix."""
        info, outputs, loss = tensor.info, self._costs.outputs(tensor.info), 0.0
        per = info.shape[1] if len(info.shape) == 3 else info.rows
        threads = self._threads if per * info.shape[-1] > _LARGE else 1
        joint = self._curved.joint(info) if info.type in REFINED_TYPES else None
        with atomic_output(path) as stream:  # whole or not at all: another worker may be asked for it too
            for expert, start in enumerate(range(0, info.rows, per)):
                weights = torch.from_numpy(np.ascontiguousarray(tensor.rows.read(start, start + per)))
                costs = outputs[start : start + per] if joint is None else joint
                found = self._curved.round(info, expert, weights, costs, info.type, threads, self._rate_of(info))
                stream.write(np.ascontiguousarray(found.rows).data)
                loss += found.loss
        return loss

    @cached_property
    def weights(self) -> int:
        """Weights of the model in all."""
        return sum(int(np.prod(rows.shape)) for rows in self.model.tensors.values())


def _read_bytes(tensor: PlannedTensor) -> int:
    """What a matrix takes in memory."""
    return 4 * int(np.prod(tensor.info.shape[-2:]))
