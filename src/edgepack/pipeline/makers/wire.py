"""Makes GGUFs on low-entropy grids: what a request means for a run, and what is told of it.

The run is `makers.wire_run`'s; which scale reaches a goal, `pipeline.goals.scalar`'s.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.export.mapped_model import map_checkpoint
from edgepack.export.plan import PlanOptions, plan_export
from edgepack.gguf import keys
from edgepack.packaging.derivation import MEMBER, encode
from edgepack.pipeline.derivation import Recorder
from edgepack.pipeline.makers.opened import bare_model, changed_by, opened_checkpoint, read_request_recipe, unworked
from edgepack.pipeline.makers.projector import seeing
from edgepack.pipeline.makers.separate import SUFFIX
from edgepack.pipeline.makers.wire_host import check_host, choose_host, memory_for
from edgepack.pipeline.makers.wire_run import SEQUENCES, WireRun, read_calibration
from edgepack.pipeline.outline import Made, Outline, rows_of
from edgepack.quant.codecs.ggml.host_grids import HOSTS, find_host
from edgepack.quant.types.choice import Overrides
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from edgepack.export.mapped import MappedModel
    from edgepack.export.plan import ExportPlan
    from edgepack.export.recipe.passes import Passes
    from edgepack.export.wire.plan import WireResult
    from edgepack.pipeline.makers.projector import ProjectorFile
    from edgepack.pipeline.makers.separate import SeparateAdapter
    from edgepack.pipeline.makers.wire_run import Trial
    from edgepack.pipeline.outline import Json
    from edgepack.pipeline.request import ExportRequest
    from edgepack.quant.codecs.ggml.host_grids import Host


class WireMaker:
    """A wire export before its scale is chosen.

    Args:
        request: names host, goal and calibration.
        passes: what comes in front, or None.
        beside: an adapter that stays a file of its own, or None.
        eyes: what sees, or None.

    Raises:
        CheckFailedError: no host fits the device.
        EdgepackError: whatever the source finds wrong.
    """

    def __init__(
        self,
        request: ExportRequest,
        passes: Passes | None,
        beside: SeparateAdapter | None,
        eyes: ProjectorFile | None = None,
    ) -> None:
        self._request, self._passes, self._beside, self._eyes = request, passes, beside, eyes
        self.memory = _memory(request)
        self.host = HOSTS["q8"] if self.memory else _host(request)
        self._recorder = Recorder(request)

    @cached_property
    def _mapped(self) -> MappedModel:
        request = self._request
        checkpoint = opened_checkpoint(request)
        if request.has_passes:
            checkpoint = unworked(checkpoint, read_request_recipe(request))
        return map_checkpoint(checkpoint, pre=request.pre)

    @cached_property
    def outline(self) -> Outline:
        """The file that llama.cpp will run, exact to the byte but for what the making adds to its metadata."""
        from edgepack.export.wire.plan import host_target
        from edgepack.quant.calibration.own_labels import refuse_shared_keys

        refuse_shared_keys(opened_checkpoint(self._request).config)
        plan = plan_export(self._mapped, host_target(self.host), PlanOptions(Overrides(pure=True)))
        label = "wire-mixed" if self.memory else f"wire-{self.host.kind.name}"
        size = min(plan.total_bytes, self.memory or plan.total_bytes)
        extra = 0 if self._beside is None else self._beside.bytes_for(self._mapped)
        extra += 0 if self._eyes is None else self._eyes.bytes
        outline = Outline(
            "wire", label, size, size + extra, plan.source_bytes, rows_of(plan), plan.metadata,
            is_exact=False, beside=() if self._beside is None else (SUFFIX,), limits=self._mapped.notes,
        )  # fmt: skip
        return outline if self._eyes is None else seeing(outline, self._eyes)

    def open(self, output: Path) -> WireRun:
        """Run the passes and measure curvature; scratch lies beside `output`.

        Raises:
            CalibrationError: the text is too short.
            EdgepackError: whatever passes or calibration find wrong.
        """
        from edgepack.export.wire.rounding import DEFAULT_TRELLIS, WireSettings

        request, changed = self._request, changed_by(self._passes, self._request)
        settings = WireSettings(
            self.host, memory=self.memory, rdo=request.rdo or 0.0, drift=request.drift, device=request.device,
            trellis=DEFAULT_TRELLIS if request.trellis is None else int(request.trellis),
        )  # fmt: skip
        text = None if request.calibration is None else Path(request.calibration)
        found = read_calibration(
            changed.checkpoint, text, request.device, request.sequences or SEQUENCES, request.length
        )
        self._notes = changed.notes
        return WireRun(
            changed.checkpoint, output, settings, found, pre=request.pre, about=changed.metadata,
            beside=self._beside, eyes=self._eyes, threads=request.threads, origin=self._write_origin,
            resume=request.resume, shared=request.shared, crew=request.crew,
            progress=request.progress,
        )  # fmt: skip

    def _write_origin(self, plan: ExportPlan, run: WireRun) -> Path:
        """The derivation of a try, in its scratch folder: it is packed with it, so that sizes are those of archives."""
        outline = self._outline_of(0, plan)
        files = (run.gguf, *run.adapters)
        path = run.scratch / MEMBER
        path.write_bytes(encode(self._recorder.derivation(outline, files)))
        return path

    def made(self, run: WireRun, trial: Trial) -> Made:
        """What a run's last try made."""
        assert trial.result is not None, "the last try's files are there"
        outline = self._outline_of(trial.gguf_bytes, trial.result.plan)
        bits = round(8 * trial.archive_bytes / run.weights, 4)
        more: dict[str, Json] = {
            "archive_bytes": trial.archive_bytes, "gguf_bytes": trial.gguf_bytes, "bits_per_weight": bits,
            "scale": trial.scale, "predicted_kl": trial.result.loss, "trials": len(run.trials),
            "trellis": trial.result.plan.metadata[keys.WIRE_TRELLIS].value,
            "raised_rows": dict(trial.result.raised_rows),
        }  # fmt: skip
        lines = _lines(trial, trial.result, run.host, bits, len(run.trials))
        return Made(
            outline, (run.gguf,), run.adapters, run.projector, run.archive, notes=self._notes, lines=lines, more=more
        )

    def _outline_of(self, size: int, plan: ExportPlan) -> Outline:
        return Outline(
            "wire", self.outline.label, size, size, plan.source_bytes, rows_of(plan),
            plan.metadata, beside=self.outline.beside, projector=self.outline.projector, limits=self.outline.limits,
        )  # fmt: skip


def _memory(request: ExportRequest) -> int:
    """Bytes that the GGUF may have; 0 where one host serves all matrices."""
    if request.memory_bytes is not None:
        if request.for_device is None:
            return request.memory_bytes
        return min(request.memory_bytes, memory_for(bare_model(request), request.for_device) or 1 << 62)
    if request.for_device is None or request.host_type is not None:
        return 0
    return memory_for(bare_model(request), request.for_device)


def _host(request: ExportRequest) -> Host:
    """The host asked for, or the largest that the device holds; q6k where neither is said."""
    named = find_host(request.host_type) if request.host_type else None
    if request.for_device is None:
        return named or HOSTS["q6k"]
    if named is None:
        return choose_host(bare_model(request), request.for_device)
    check_host(bare_model(request), named, request.for_device)
    return named


def _lines(trial: Trial, result: WireResult, host: str, bits: float, tries: int) -> tuple[str, ...]:
    """What people are told of a wire file beside its size."""
    raised = sum(result.raised_rows.values())
    told = [f"{raised} rows have integers beyond what {host} holds: their groups got larger steps"] if raised else []
    told.append(
        f"ships as {format_size(trial.archive_bytes)} ({bits:.2f} bits a weight), runs as"
        f" {format_size(trial.gguf_bytes)} of {host}; predicted KL of the weights"
        f" {result.loss:.4f}; {tries} tries"
    )
    return tuple(told)
