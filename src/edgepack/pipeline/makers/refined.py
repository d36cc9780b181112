"""Makes refined GGUFs: types allocated within a budget, matrices rounded by their curvature; what a request means.

Measuring is `makers.refined_run`'s, allocating and rounding `export.refine`'s, which divergence reaches a gate
`pipeline.goals.scalar`'s.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from edgepack.export.gguf_file import write_shards
from edgepack.export.mapped_model import map_checkpoint
from edgepack.export.plan import shard_paths, split_plan
from edgepack.export.recipe.changed import ChangedModel
from edgepack.files.claim import check_output
from edgepack.gguf import keys
from edgepack.gguf.types import Value, ValueType, boolean, f32, string, u32
from edgepack.pipeline.makers.aim import Aim
from edgepack.pipeline.makers.opened import opened_checkpoint, overrides_of, read_request_recipe, unworked
from edgepack.pipeline.makers.refined_calibration import calibration_of
from edgepack.pipeline.makers.refined_report import figures_of, plain_notes
from edgepack.pipeline.makers.refined_run import SEED, RunOptions, refined_run
from edgepack.pipeline.makers.stock_plans import StockPlans
from edgepack.pipeline.makers.tuned import reserved, tuned, untuned_path
from edgepack.pipeline.options import REFINED
from edgepack.pipeline.outline import Made, Outline, rows_of
from edgepack.quant.types.targets import Target, find_target
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgepack.export.mapped import MappedModel
    from edgepack.export.plan import ExportPlan
    from edgepack.export.recipe.passes import Passes
    from edgepack.export.refine.model import RefinedModel
    from edgepack.export.refine.values import Allocation
    from edgepack.pipeline.makers.wire_run import Calibration
    from edgepack.pipeline.request import ExportRequest

_LEAST_PACKED_SHARE = 0.88  # as of other block types (makers.gguf)
_GATED = "q5km"  # what passes work for where a gate decides: gates are mostly reached about there


class RefinedMaker:
    """Files of ggml's types, refined; a setting is an `Aim`. What is made needs `opened`.

    Args:
        request: names goal and calibration.
        passes: what comes in front, or None.
    """

    advice = "leave out --target to have types allocated within the size"

    def __init__(self, request: ExportRequest, passes: Passes | None) -> None:
        self._request, self._passes = request, passes
        self._target = None if request.target is None else find_target(request.target)
        self._overrides = overrides_of(request)
        self._model: RefinedModel | None = None
        self._allocated: dict[Aim, tuple[ExportPlan, Allocation]] = {}
        self._calibration: Calibration | None = None
        self._about: dict[str, Value] = {}
        self._notes: tuple[str, ...] = ()

    @cached_property
    def mapped(self) -> MappedModel:
        """The model under GGUF names; while the run is open, as passes left it."""
        request = self._request
        if self._model is not None:
            return self._model.model
        checkpoint = opened_checkpoint(request)
        if request.changes_weights:
            checkpoint = unworked(checkpoint, read_request_recipe(request))
        return map_checkpoint(checkpoint, pre=request.pre, allow_requantize=request.allow_requantize)

    @cached_property
    def weights(self) -> int:
        """Weights of the file in all."""
        return sum(prod(rows.shape) for rows in self.mapped.tensors.values())

    @property
    def _stock(self) -> StockPlans:
        return StockPlans(self.mapped, self._overrides, self._target)

    def aim(self, beside: int = 0) -> Aim:
        """What the request asks for, gates and archives aside.

        Args:
            beside: bytes of what lies beside the file, which count with it.
        """
        request, goals = self._request, list[int]()
        if self._target is not None:
            goals.append(self._stock.of(self._target).total_bytes)
        if request.max_bytes is not None and not request.packs:
            goals.append(request.max_bytes - beside)
        if request.bits is not None:
            goals.append(int(request.bits * self.weights / 8))
        if request.for_device is not None:
            goals.append(self._stock.largest_on(request.for_device))
        return Aim(min(goals) if goals else self._stock.of(find_target("q8")).total_bytes)

    def outline(self, aim: Aim) -> Outline:
        """As `goals.Maker.outline`: before `opened` the most bytes that the file may have."""
        if self._model is None:
            base, limits = self._stock.base(aim.budget), (*self.mapped.notes, *self._forecast(aim))
            return replace(self._outline(base, limits), label=self._label(aim), is_exact=False).sized(aim.budget)
        plan, allocation = self._planned(aim)
        return self._outline(plan, self.mapped.notes).sized(allocation.bytes)

    def _outline(self, plan: ExportPlan, limits: tuple[str, ...]) -> Outline:
        name = REFINED if self._target is None else self._target.name
        return Outline(
            name, plan.target.label, plan.total_bytes, plan.total_bytes, plan.source_bytes, rows_of(plan),
            plan.metadata, _LEAST_PACKED_SHARE, limits=limits,
        )  # fmt: skip

    def _forecast(self, aim: Aim) -> Iterator[str]:
        """What a plan cannot show before anything was measured."""
        yield (
            f"refined: types are allocated within {format_size(aim.budget)} once curvature is measured; until then"
            " the table shows a stock mixture"
        )
        if self._request.dry_run:
            from edgepack.pipeline.makers.refined_time import expected

            yield str(expected(self._request))

    def _label(self, aim: Aim) -> str:
        """Such as `Q4_K_M_REFINED`; by the bits a weight where bytes were given, and bare where they are searched."""
        if self._target is not None:
            return f"{self._target.label}_REFINED"
        bits = f"_{8 * aim.budget / self.weights:.2f}BPW".replace(".", "_")
        return f"REFINED{bits if self._request.has_budget and not self.searches else ''}"

    @property
    def searches(self) -> bool:
        """Whether the bytes are searched: those of an archive, or those that clear a gate."""
        request = self._request
        return request.target is None and (request.is_gated or (request.packs and request.max_size is not None))

    @contextmanager
    def opened(self, output: Path) -> Iterator[None]:
        """Run the passes and measure, for as long as the block lasts; scratch lies beside `output`.

        Raises:
            CalibrationError: the text is too short.
            EdgepackError: whatever passes or calibration find wrong.
        """
        from edgepack.export.refine.values import RefineSettings

        request, changed = self._request, self._changed()
        self._calibration = calibration_of(request, changed.checkpoint)
        settings = RefineSettings(allocation=not self._overrides.pure, on_gpu=_is_gpu(request.for_device),
                                  prefer_speed=request.prefer_speed)  # fmt: skip
        options = RunOptions(
            request.pre, request.device, request.threads, request.resume, request.progress,
            None if request.changes_weights else request.shared,  # changed for this file's types: of use to no other
            request.crew,
        )  # fmt: skip
        with refined_run(changed.checkpoint, output, settings, self._calibration, options) as model:
            self._model, self._about, self._notes = model, dict(changed.metadata), changed.notes
            self.__dict__.pop("mapped", None)
            self._allocated.clear()
            yield

    def _changed(self) -> ChangedModel:
        """The model as the passes leave it; those that ask for a target get the one named, or that of the bytes."""
        if self._passes is None:
            return ChangedModel(opened_checkpoint(self._request))
        return self._passes.changed_for(self._passes_target)

    @cached_property
    def _passes_target(self) -> Target:
        """Whose types passes work for; where bytes are searched, those that come near what is asked for."""
        request = self._request
        if request.passes_for is not None:
            return find_target(request.passes_for)
        if self._target is not None:
            return self._target
        if not self.searches:
            return self._stock.base(self.aim().budget).target
        if request.max_bytes is None:
            return find_target(_GATED)
        return self._stock.base(int(request.max_bytes / _LEAST_PACKED_SHARE)).target

    def _planned(self, aim: Aim) -> tuple[ExportPlan, Allocation]:
        """Types for an aim, and the plan whose metadata says so."""
        if aim not in self._allocated:
            model, budget = self._opened_model, aim.budget
            if aim.divergence is not None:  # the base depends on nothing but the bytes, so that they give the same file
                base = self._told(aim)
                budget = model.budget_for(base, aim.divergence, self._stock.fixed(base))
            told = Aim(budget, rate=aim.rate, free=aim.free)
            base = self._told(told)
            fixed = self._stock.fixed(base)
            allocation = model.allocation(base, max(budget, self._least(base, fixed)), fixed)
            kind = self._stock.file_type(allocation, base)
            about = self._metadata(told, allocation.divergence)
            about |= {keys.FILE_TYPE: u32(kind.file_type)}
            plan = replace(model.allocated(base, allocation), metadata={**base.metadata, **about})
            self._allocated[aim] = replace(plan, target=replace(kind, label=self._label(aim))), allocation
        return self._allocated[aim]

    def predicted(self, aim: Aim) -> float:
        """What the types of an aim are predicted to cost, in nats a token."""
        return self._planned(aim)[1].divergence

    def matrices(self, aim: Aim) -> int:
        """How many matrices an aim's file has refined."""
        return len(self._planned(aim)[1].kinds)

    def _told(self, aim: Aim) -> ExportPlan:
        """The base with metadata as long as the file's will be."""
        base = self._stock.base(aim.budget)
        return replace(base, metadata={**base.metadata, **self._metadata(aim, 0.0)})

    def _least(self, plan: ExportPlan, fixed: frozenset[str]) -> int:
        """A target's own types always fit, though the file says more of itself than llama.cpp's; a size is a size."""
        return (
            self._opened_model.least_bytes(plan, fixed)
            if self._target is not None and not self._request.has_budget
            else 0
        )

    @property
    def _opened_model(self) -> RefinedModel:
        assert self._model is not None, "refined: expected the run to be open"
        return self._model

    def _metadata(self, aim: Aim, divergence: float) -> dict[str, Value]:
        """How the file was made; as long whatever the figures are."""
        assert self._calibration is not None
        settings = self._opened_model.settings
        passes = {} if self._passes is None else {keys.REFINE_PASSES_FOR: string(self._passes_target.name)}
        rated = {keys.REFINE_RATE: Value(ValueType.FLOAT64, aim.rate), keys.REFINE_UNRATED: u32(aim.free)}
        return {
            **passes,
            **self._about,
            **(reserved(self._request) if self._request.tune else {}),
            **(rated if aim.rate else {}),
            keys.REFINE_BUDGET: Value(ValueType.UINT64, aim.budget),
            keys.REFINE_ALLOCATION: boolean(settings.allocation),
            keys.REFINE_ON_GPU: boolean(settings.on_gpu),
            keys.REFINE_PREFER_SPEED: boolean(settings.prefer_speed),
            keys.REFINE_PREDICTED_KL: f32(divergence),
            keys.REFINE_CALIBRATION_SHA256: string(self._calibration.sha256),
            keys.REFINE_CALIBRATION_TOKENS: u32(self._calibration.tokens.size),
            keys.REFINE_SEED: u32(SEED),
        }

    def make(self, aim: Aim, path: Path) -> Made:
        """As `goals.Maker.make`."""
        request = self._request
        planned, allocation = self._planned(aim)
        free = self._opened_model.dearest_at(aim.rate, planned, allocation)[: aim.free] if aim.free else ()
        found = self._opened_model.at_rate(aim.rate, free).rounded(planned, allocation)
        plan = found.plan
        shards = split_plan(plan, request.shard_bytes) if request.shard_bytes else [plan]
        for name in shard_paths(path, len(shards)) if len(shards) > 1 else ():
            check_output(name, inputs=request.inputs, force=request.force or request.resume)
        place = untuned_path(self._opened_model, path) if request.tune else path
        files = write_shards(
            shards, place, threads=request.threads, progress=request.progress, resume=request.resume, crew=request.crew
        )  # fmt: skip
        outline = self._outline(plan, self.mapped.notes)
        notes = (*self._notes, *plain_notes(found.plain))
        lines, more = figures_of(found, allocation, plan, self.weights)
        made = Made(outline, tuple(files), notes=notes, lines=lines, more=more)
        return tuned(request, self._opened_model, self._calibration, made, path) if request.tune else made

    def forget(self, aim: Aim) -> None:
        """As `goals.Maker.forget`: rounded matrices stay for other aims."""
        self._allocated.pop(aim, None)


def _is_gpu(device: str | None) -> bool:
    if device is None:
        return False
    from edgepack.edge.fit.devices import find_device

    return find_device(device).is_gpu
