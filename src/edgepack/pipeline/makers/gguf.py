"""Makes GGUFs of ggml's types: from the source as it is, or as the passes of a recipe leave it.

Types are chosen and bytes planned by `export.plan`, passes run by `export.recipe.work`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from edgepack.errors import UsageError
from edgepack.export.gguf_file import write_shards
from edgepack.export.mapped_model import map_checkpoint
from edgepack.export.plan import PlanOptions, plan_export, shard_paths, split_plan
from edgepack.export.recipe.corrections import adapter_suffixes
from edgepack.files.claim import check_output
from edgepack.pipeline.makers.importance import with_importance
from edgepack.pipeline.makers.opened import opened_checkpoint, opened_model, overrides_of, unworked
from edgepack.pipeline.outline import Made, Outline, rows_of
from edgepack.quant.types.targets import Target, find_target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgepack.export.mapped import MappedModel
    from edgepack.export.plan import ExportPlan
    from edgepack.export.recipe.passes import Passes
    from edgepack.export.recipe.values import PreparedExport
    from edgepack.pipeline.outline import Json
    from edgepack.pipeline.request import ExportRequest
    from edgepack.quant.types.choice import Overrides

# What a size or a gate is met with, from large to small: the types that need no importance matrix.
_QUANTISED = ("q8", "q6k", "q5km", "q5ks", "q4km", "q4ks", "iq4xs", "q3kl", "q3km", "q3ks", "q2k")
_FLOATS = {"BF16": ("bf16",), "F16": ("f16",)}  # by the source's own type; any other takes f32 and, below it, bf16
# No archive was ever smaller than this share of its file, of block types and of floats (tools/bench_archive.py):
# a plan whose share of the limit is larger need not be tried.
_LEAST_PACKED_SHARE, _LEAST_PACKED_SHARE_OF_FLOATS = 0.88, 0.6


def ladder(model: MappedModel) -> tuple[Target, ...]:
    """The targets that may be chosen for a model, from large to small.

    The largest is the float type that loses nothing of the model; larger ones would only be larger.
    """
    dtypes = {rows.dtype.upper() for rows in model.tensors.values() if len(rows.shape) > 1}
    floats = _FLOATS.get(dtypes.pop(), ()) if len(dtypes) == 1 else ()
    return tuple(find_target(name) for name in (*(floats or ("f32", "bf16")), *_QUANTISED))


@dataclass(frozen=True)
class Finished:
    """A plan to write, and what belongs to the file.

    Attributes:
        plan: final.
        figures: what passes measured.
        notes: a line each on what was skipped and why.
    """

    plan: ExportPlan
    figures: tuple[Mapping[str, Json], ...] = ()
    notes: tuple[str, ...] = ()


class Planner(Protocol):
    """Plans files of a model for one target after another."""

    mapped: MappedModel  # the model before any work
    corrects: bool  # whether adapters correct what rounding did
    beside: tuple[str, ...]  # ends of the names of adapters that may lie beside the file, after its stem

    def outline(self, target: Target) -> ExportPlan:
        """The plan, types and bytes final, without the work that only this target needs."""
        ...

    def finish(self, target: Target) -> Finished:
        """The plan to be written."""
        ...

    def beside_bytes(self, plan: ExportPlan) -> int:
        """What adapters beside the file will take, about."""
        ...

    def write_beside(self, target: Target, gguf: Path) -> tuple[Path, ...]:
        """Write the adapters that belong beside the finished file."""
        ...

    def forget(self, target: Target) -> None:
        """Remove what is kept for a target."""
        ...


class PlainPlanner:
    """The source as it is."""

    def __init__(self, request: ExportRequest) -> None:
        mapped = opened_model(request)
        overrides = overrides_of(request)
        _refuse_types_without_effect(request.target, overrides)
        self.corrects = False
        self.beside: tuple[str, ...] = ()
        self.mapped, importance = with_importance(request, mapped)
        self._options = PlanOptions(overrides, importance, "ggml" if request.quantizer == "ggml" else "edgepack")
        self._plans: dict[str, ExportPlan] = {}

    def outline(self, target: Target) -> ExportPlan:
        """As `Planner.outline`."""
        if target.name not in self._plans:
            self._plans[target.name] = plan_export(self.mapped, target, self._options)
        return self._plans[target.name]

    def finish(self, target: Target) -> Finished:
        """As `Planner.finish`."""
        return Finished(self.outline(target))

    def beside_bytes(self, _plan: ExportPlan) -> int:
        """As `Planner.beside_bytes`."""
        return 0

    def write_beside(self, _target: Target, _gguf: Path) -> tuple[Path, ...]:
        """As `Planner.write_beside`."""
        return ()

    def forget(self, target: Target) -> None:
        """As `Planner.forget`."""


class PassesPlanner:
    """The source as the passes of a recipe leave it.

    Args:
        request: has a recipe.
        passes: the recipe at work.
    """

    def __init__(self, request: ExportRequest, passes: Passes) -> None:
        self._passes, self._progress = passes, request.progress
        self._prepared: dict[str, PreparedExport] = {}
        self.mapped = map_checkpoint(unworked(opened_checkpoint(request), passes.recipe), pre=request.pre)
        self.corrects, self.beside = bool(passes.corrections), adapter_suffixes(passes.recipe)

    def outline(self, target: Target) -> ExportPlan:
        """As `Planner.outline`."""
        return self._passes.outline(target)

    def finish(self, target: Target) -> Finished:
        """As `Planner.finish`."""
        prepared = self._prepared[target.name] = self._passes.prepare(target)
        return Finished(prepared.plan, tuple(dict(figures) for figures in prepared.figures), prepared.notes)

    def beside_bytes(self, plan: ExportPlan) -> int:
        """As `Planner.beside_bytes`."""
        from edgepack.export.recipe.corrections import correction_bytes

        return sum(correction_bytes(plan, step) for step in self._passes.corrections)

    def write_beside(self, target: Target, gguf: Path) -> tuple[Path, ...]:
        """As `Planner.write_beside`."""
        from edgepack.export.recipe.corrections import write_adapters

        return write_adapters(self._prepared[target.name], gguf, self._progress)[0]

    def forget(self, target: Target) -> None:
        """As `Planner.forget`."""
        self._prepared.pop(target.name, None)
        self._passes.forget(target)


class GgufMaker:
    """Files of ggml's types; a setting is a `Target`.

    Args:
        request: how files are written.
        planner: plans them.
    """

    advice = "leave out --target to take the largest that fits"

    def __init__(self, request: ExportRequest, planner: Planner) -> None:
        self._request, self.planner = request, planner

    @property
    def mapped(self) -> MappedModel:
        """The model before any work."""
        return self.planner.mapped

    @property
    def ladder(self) -> Sequence[Target]:
        """The targets that may be chosen, from large to small: a correction needs something that was rounded."""
        found = ladder(self.planner.mapped)
        return [each for each in found if each.default.is_quantized or not self.planner.corrects]

    def outline(self, target: Target) -> Outline:
        """As `goals.Maker.outline`."""
        plan = self.planner.outline(target)
        beside = self.planner.beside_bytes(plan)
        return replace(outline_of(plan, beside), limits=self.mapped.notes, beside=self.planner.beside)

    def make(self, target: Target, path: Path) -> Made:
        """As `goals.Maker.make`."""
        request, finished = self._request, self.planner.finish(target)
        plan = finished.plan
        shards = split_plan(plan, request.shard_bytes) if request.shard_bytes else [plan]
        for name in shard_paths(path, len(shards)) if len(shards) > 1 else ():
            check_output(name, inputs=request.inputs, force=request.force or request.resume)
        files = write_shards(
            shards, path, threads=request.threads, progress=request.progress, resume=request.resume, crew=request.crew
        )  # fmt: skip
        adapters = self.planner.write_beside(target, files[0])
        outline = replace(outline_of(plan, 0), limits=self.mapped.notes)
        return Made(outline, tuple(files), adapters, figures=finished.figures, notes=finished.notes)

    def forget(self, target: Target) -> None:
        """As `goals.Maker.forget`."""
        self.planner.forget(target)


def open_gguf(request: ExportRequest, passes: Passes | None) -> GgufMaker:
    """The maker of a request, with what its passes leave.

    Collecting importance over `calibration` happens here where there are no passes: the plan stands on it.

    Raises:
        EdgepackError: whatever the source finds wrong.
    """
    return GgufMaker(request, PlainPlanner(request) if passes is None else PassesPlanner(request, passes))


def outline_of(plan: ExportPlan, beside: int) -> Outline:
    """A plan as goals see it, with `beside` bytes of adapters."""
    share = _LEAST_PACKED_SHARE if plan.target.default.is_quantized else _LEAST_PACKED_SHARE_OF_FLOATS
    return Outline(
        plan.target.name, plan.target.label, plan.total_bytes, plan.total_bytes + beside, plan.source_bytes,
        rows_of(plan), plan.metadata, share, is_exact=not beside,
    )  # fmt: skip


def _refuse_types_without_effect(target: str | None, overrides: Overrides) -> None:
    """Raise UsageError where types are chosen by hand for a target of floats, which keeps every matrix in its type."""
    if target is not None and overrides.patterns and not find_target(target).default.is_quantized:
        pattern = overrides.patterns[0][0]
        raise UsageError(
            f"--tensor-type '{pattern}': {target} keeps every matrix in its type: expected a quantised target"
        )
