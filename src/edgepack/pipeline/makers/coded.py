"""Makes GGUFs of the variant: matrices coded by edgepack's codecs, decoded to ggml's types on the device.

Planning and coding are `export.coded`'s, statistics `quant.calibration`'s.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.export.coded.plan import parse_tensor_codecs, plan_variant, settle_plan
from edgepack.export.coded.write import write_variant
from edgepack.export.inputs import input_statistics
from edgepack.export.mapped_model import map_checkpoint
from edgepack.files.source import WatchedFiles
from edgepack.pipeline.makers.opened import changed_by, merged_adapter, opened_model
from edgepack.pipeline.outline import Made, Outline, TensorRow
from edgepack.quant.codecs.codec import Statistics
from edgepack.quant.codecs.targets import EdgeTarget, find_edge_target

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from edgepack.export.coded.outcome import CodedReport
    from edgepack.export.coded.plan import PlannedMatrix, VariantPlan
    from edgepack.export.mapped import MappedModel
    from edgepack.export.recipe.changed import ChangedModel
    from edgepack.export.recipe.passes import Passes
    from edgepack.gguf.types import TensorInfo, Value
    from edgepack.model import Checkpoint
    from edgepack.pipeline.outline import Json
    from edgepack.pipeline.request import ExportRequest


class CodedMaker:
    """Files of the variant; a setting is an `EdgeTarget`.

    Args:
        request: names target, codecs of single tensors and calibration.
        mapped: the model.
        changed: what passes left, where the model is a checkpoint.
        scratch: where a calibration lies while files are made; None where there is none.
    """

    advice = "choose a codec with fewer bits"

    def __init__(
        self, request: ExportRequest, mapped: MappedModel, changed: ChangedModel | None, scratch: Path | None = None
    ) -> None:
        self._request, self.mapped, self._changed, self._scratch = request, mapped, changed, scratch
        self._overrides = parse_tensor_codecs(request.tensor_codecs)
        self._planned: dict[str, tuple[VariantPlan, Mapping[str, Statistics]]] = {}

    def outline(self, target: EdgeTarget) -> Outline:
        """As `goals.Maker.outline`; collects Hessians first where a text is given: codecs' choices stand on them.

        A dry run collects none, and its outline is not exact then.
        """
        plan, request = self._plan(target)[0], self._request
        rows = tuple(_planned_row(tensor) for tensor in plan.tensors)
        uncollected = request.dry_run and request.calibration is not None
        return self._outline(plan, plan.total_bytes, rows, exact=not (request.skip_harmful or uncollected))

    def make(self, target: EdgeTarget, path: Path) -> Made:
        """As `goals.Maker.make`."""
        request, (plan, statistics) = self._request, self._plan(target)
        size, reports = write_variant(
            plan, path, statistics, skip_harmful=request.skip_harmful, threads=request.threads,
            progress=request.progress, resume=request.resume, crew=request.crew,
        )  # fmt: skip
        outline = self._outline(plan, size, tuple(map(_coded_row, reports)), exact=True)
        notes = self._changed.notes if self._changed else ()
        return Made(outline, (path,), notes=notes, lines=tuple(_stage_lines(reports)))

    def _outline(self, plan: VariantPlan, size: int, rows: tuple[TensorRow, ...], *, exact: bool) -> Outline:
        name = f"edge-{plan.target.name}"
        return Outline(
            name, name.replace(":", "-"), size, size, plan.source_bytes, rows, plan.metadata, is_exact=exact,
            limits=(*self.mapped.notes, *plan.notes),
        )  # fmt: skip

    def forget(self, target: EdgeTarget) -> None:
        """As `goals.Maker.forget`."""

    def _plan(self, target: EdgeTarget) -> tuple[VariantPlan, Mapping[str, Statistics]]:
        if target.name not in self._planned:
            plan = plan_variant(self.mapped, target, self._overrides)
            statistics, record = _statistics(self._request, self.mapped, self._changed, self._scratch)
            metadata = {**plan.metadata, **record, **(self._changed.metadata if self._changed else {})}
            self._planned[target.name] = settle_plan(replace(plan, metadata=metadata), statistics), statistics
        return self._planned[target.name]


def open_coded(request: ExportRequest, passes: Passes | None, scratch: Path | None = None) -> CodedMaker:
    """The maker of a request, with what its passes leave; `scratch` is where a calibration lies.

    Raises:
        UsageError: an unknown codec.
        EdgepackError: whatever source or passes find wrong.
    """
    find_edge_target(request.target or "")
    if request.source.is_file() and request.original is None:
        return CodedMaker(request, opened_model(request), None)
    changed = changed_by(passes, request)
    mapped = map_checkpoint(changed.checkpoint, pre=request.pre)
    adapter = merged_adapter(request)
    if adapter is not None:  # an interrupted export goes on only while these are unchanged too
        mapped = replace(mapped, sources=mapped.sources + WatchedFiles.of(sorted(adapter.glob("adapter_*"))))
    return CodedMaker(request, mapped, changed, scratch)


def _statistics(
    request: ExportRequest, mapped: MappedModel, changed: ChangedModel | None, scratch: Path | None
) -> tuple[dict[str, Statistics], dict[str, Value]]:
    """GGUF name → what calibration knows of a matrix's inputs, and the keys that name an importance matrix."""
    if request.calibration is not None and changed is not None:
        if request.dry_run:
            return {}, {}
        return _collected(request, changed.checkpoint, mapped, scratch), {}
    if request.imatrix is None:
        return {}, {}
    from edgepack.quant.calibration.importance_file import importance_metadata, read_importance

    matrix = read_importance(Path(request.imatrix))
    weights = matrix.weights({name: rows.shape for name, rows in mapped.tensors.items()})
    # A stack of experts is coded as one matrix, so its columns weigh what they weigh on average.
    statistics = {name: Statistics(np.atleast_2d(weight).mean(axis=0)) for name, weight in weights.items()}
    return statistics, importance_metadata(matrix, Path(request.imatrix))


def _collected(
    request: ExportRequest, checkpoint: Checkpoint, mapped: MappedModel, scratch: Path | None
) -> dict[str, Statistics]:
    """GGUF name → Hessian of a matrix's inputs over the calibration text, in `scratch` where there is one."""
    from edgepack.quant.calibration.collect import collect
    from edgepack.quant.calibration.text import DEFAULT_SEQUENCES, text_sequences
    from edgepack.text_file import read_text

    text = read_text(Path(request.calibration or ""))
    tokens = text_sequences(checkpoint, text, length=request.length, sequences=request.sequences or DEFAULT_SEQUENCES)
    known = collect(
        checkpoint, tokens, with_hessian=True, device=request.device, keep_in=scratch, progress=request.progress,
        crew=request.crew,
    ).statistics  # fmt: skip
    found = {name: own for name, rows in mapped.tensors.items() if (own := input_statistics(rows, known)) is not None}
    return {name: Statistics(own.mean_square, own.stored or own.hessian) for name, own in found.items()}


def _planned_row(tensor: PlannedMatrix) -> TensorRow:
    """A tensor of the plan, with what holds it in the file."""
    kind = "+".join(codec.name for codec in tensor.target.codecs) if tensor.target else "F32"
    size = sum(info.nbytes for info in tensor.components)
    more: dict[str, Json] = {"components": _components(tensor.components)}
    return TensorRow(tensor.name, tensor.rows.shape, tensor.rows.dtype, kind, size, more)


def _coded_row(report: CodedReport) -> TensorRow:
    """A tensor of the file, with what each stage gave."""
    stages: list[Json] = [
        {"codec": stage.codec, "bits_per_weight": stage.bits_per_weight, "error_before": stage.error_before,
         "error": stage.error, "kept": stage.kept}
        for stage in report.stages
    ]  # fmt: skip
    more: dict[str, Json] = {
        "native": report.native.name, "components": _components(report.components), "error": report.error,
        "stages": stages,
    }  # fmt: skip
    return TensorRow(report.name, report.shape, report.source_type, report.type, report.bytes, more)


def _components(infos: Iterable[TensorInfo]) -> list[Json]:
    return [
        {"name": info.name, "shape": list(info.shape), "type": info.type.name, "bytes": info.nbytes} for info in infos
    ]


def _stage_lines(reports: tuple[CodedReport, ...]) -> list[str]:
    """One line for each stage over all matrices (means by weights), and one for each stage that did harm."""
    coded = [report for report in reports if report.stages]
    weights = sum(prod(report.shape) for report in coded)
    lines = []
    for number in range(max((len(report.stages) for report in coded), default=0)):
        staged = [(report.stages[number], prod(report.shape)) for report in coded if number < len(report.stages)]
        bits = sum(stage.bits_per_weight * count for stage, count in staged if stage.kept) / weights
        error = sum(stage.error * count for stage, count in staged) / sum(count for _stage, count in staged)
        codec = staged[0][0].codec
        lines.append(f"stage {number + 1}: {codec}: {bits:.3f} bits a weight, relative squared error {error:.3e}")
    return lines + [line for report in coded for line in _harm_lines(report)]


def _harm_lines(report: CodedReport) -> list[str]:
    return [
        f"{report.name}: stage {number + 1} ({stage.codec}) does harm:"
        f" {stage.error_before:.3e} → {stage.error:.3e}, {'kept' if stage.kept else 'dropped'}"
        for number, stage in enumerate(report.stages)
        if number and stage.harmful
    ]
