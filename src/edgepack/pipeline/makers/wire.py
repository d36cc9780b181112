"""Makes GGUFs on low-entropy grids: what a request means for a run, and what is told of it.

<<<<<<< HEAD
The run is `makers.wire_run`'s; which scale reaches a goal, `pipeline.scalar`'s.
=======
Rounding is left to `export.wire.plan`, packing to `packaging`; which scale reaches a goal, to `pipeline.goals.scalar`.
>>>>>>> main
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.export.mapped_model import map_checkpoint
from edgepack.export.plan import PlanOptions, plan_export
from edgepack.gguf import keys
<<<<<<< HEAD
=======
from edgepack.gguf.types import string, u32
from edgepack.pipeline.goals.scalar import scale_of
>>>>>>> main
from edgepack.pipeline.makers.opened import changed_by, opened_checkpoint, read_request_recipe, unworked
from edgepack.pipeline.makers.separate import SUFFIX
from edgepack.pipeline.makers.wire_host import check_host, choose_host
from edgepack.pipeline.makers.wire_run import WireRun, read_calibration
from edgepack.pipeline.outline import Made, Outline, rows_of
<<<<<<< HEAD
=======
from edgepack.progress import silent
>>>>>>> main
from edgepack.quant.codecs.ggml.host_grids import find_host
from edgepack.quant.types.choice import Overrides
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from edgepack.export.mapped import MappedModel
<<<<<<< HEAD
    from edgepack.export.plan import ExportPlan
    from edgepack.export.wire.plan import WireResult
=======
    from edgepack.export.recipe.work import Passes
    from edgepack.export.wire.plan import WireModel, WireResult, WireSettings
    from edgepack.gguf.types import Value
    from edgepack.model import Checkpoint
    from edgepack.pipeline.goals.judging import Judge, Rung
>>>>>>> main
    from edgepack.pipeline.makers.separate import SeparateAdapter
    from edgepack.pipeline.makers.wire_run import Trial
    from edgepack.pipeline.outline import Json
    from edgepack.pipeline.request import ExportRequest
    from edgepack.quant.codecs.ggml.host_grids import Host

<<<<<<< HEAD
=======
SEQUENCES = 40  # of 512 tokens: the curvature's pass takes three forward passes' time


@dataclass(frozen=True)
class Trial:
    """One scale tried.

    Attributes:
        scale: the scalar.
        archive_bytes: of the archive.
        gguf_bytes: of the GGUF.
        result: the rounding.
    """

    scale: float
    archive_bytes: int
    gguf_bytes: int
    result: WireResult


@dataclass(frozen=True)
class Calibration:
    """The text that curvature is measured on.

    Attributes:
        tokens: [sequences, length].
        sha256: of the text, hexadecimal; of the tokens where the model wrote them itself.
    """

    tokens: NDArray[np.int64]
    sha256: str


def read_calibration(
    checkpoint: Checkpoint, text: Path | None, device: str, sequences: int = SEQUENCES, length: int | None = None
) -> Calibration:
    """Tokens of a text, or of what the model writes itself; raises CalibrationError for a text that is too short."""
    from edgepack.edge.fidelity.scoring import text_to_score
    from edgepack.quant.calibration.text import own_samples, text_sequences

    if text is None:
        tokens = own_samples(checkpoint, sequences=sequences, length=length, device=device)
        return Calibration(tokens, hashlib.sha256(tokens.tobytes()).hexdigest())
    found = text_to_score(text)
    return Calibration(text_sequences(checkpoint, found.text, sequences=sequences, length=length), found.sha256)


class WireRun:
    """A model ready to be tried at any scale, with a scratch folder of its own; use it in a `with` block.

    Args:
        checkpoint: the model.
        output: the file that will be written; scratch lies beside it.
        settings: how matrices are rounded.
        calibration: what curvature is measured on.
        pre: the pre-tokenizer's name where its structure is not known.
        about: metadata to add to the file.
        beside: an adapter that goes into the archive.
        threads: of packing; None for all.
        progress: told of each step.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        output: Path,
        settings: WireSettings,
        calibration: Calibration,
        *,
        pre: str | None = None,
        about: Mapping[str, Value] | None = None,
        beside: SeparateAdapter | None = None,
        threads: int | None = None,
        progress: Progress = silent,
    ) -> None:
        from edgepack.export.wire.plan import WireModel
        from edgepack.quant.calibration.curvature import measure
        from edgepack.quant.calibration.curvature_store import CurvatureStore

        check_output(output, None)
        self.checkpoint, self.threads, self.progress = checkpoint, threads, progress
        self.calibration, self._pre, self._about = calibration, pre, dict(about or {})
        self.adapters: tuple[Path, ...] = ()
        self._folder = tempfile.TemporaryDirectory(prefix=".edgepack-wire-", dir=output.parent)
        self.scratch = Path(self._folder.name)
        self.gguf = self.scratch / f"{output.stem}.gguf"
        self.archive = self.scratch / f"{output.stem}.edgepack"
        self.trials: list[Trial] = []
        try:
            store = CurvatureStore(self.scratch / "curvature")
            entering = self.scratch / "entering"
            store.fill(measure(checkpoint, calibration.tokens, entering, device=settings.device, progress=progress))
            self.model: WireModel = WireModel(checkpoint, store, settings, calibration.tokens, pre=pre)
            if beside is not None:
                self.adapters = (beside.write(self.model.model, self.gguf),)
        except BaseException:
            self._folder.cleanup()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._folder.cleanup()

    def use(self, settings: WireSettings) -> None:
        """Round with other settings from now on; the curvature stays."""
        from edgepack.export.wire.plan import WireModel

        self.model = WireModel(self.checkpoint, self.model.curvatures, settings, self.calibration.tokens, pre=self._pre)
        self.trials = []

    def attempt(self, scale: float) -> Trial:
        """Round, write and pack at one scale; the files stay in the scratch folder until the next attempt."""
        from edgepack.export.gguf_file import write_gguf
        from edgepack.packaging.pack import pack_archive

        about: dict[str, Value] = {
            **self._about,
            keys.WIRE_CALIBRATION_SHA256: string(self.calibration.sha256),
            keys.WIRE_CALIBRATION_TOKENS: u32(self.calibration.tokens.size),
        }
        result = self.model.round(scale, self.scratch / "blocks", about, self.progress)
        written = write_gguf(result.plan, self.gguf, threads=self.threads, progress=self.progress)
        packed = pack_archive(
            self.gguf, self.archive, include=self.adapters, threads=self.threads, progress=self.progress
        )
        trial = Trial(scale, packed.bytes, written, result)
        self.trials.append(trial)
        return trial

    @property
    def weights(self) -> int:
        """Weights on grids."""
        return self.model.weights

    @property
    def host(self) -> str:
        """The type that holds them."""
        return self.model.settings.host.kind.name

    def hold_still(self, held: bool) -> None:
        """Whether later tries change nothing but the scale: which matrices have a trellis stays as it is."""
        self.model.keep_trellises(held)

    def judge_last(self, judge: Judge) -> Rung:
        """Hold the last try's GGUF against the original."""
        return judge(f"wire at scale {self.trials[-1].scale:.3g}", self.gguf, self.adapters)

    def scale_of(self, divergence: float) -> float:
        """The scale at which rounding alone is predicted to cost `divergence` nats a token."""
        return scale_of(divergence, self.weights)

>>>>>>> main

class WireMaker:
    """A wire export before its scale is chosen.

    Args:
        request: names host, goal and calibration.
        passes: what comes in front, or None.
        beside: an adapter that stays a file of its own, or None.

    Raises:
        CheckFailedError: no host fits the device.
        EdgepackError: whatever the source finds wrong.
    """

    def __init__(self, request: ExportRequest, passes: Passes | None, beside: SeparateAdapter | None) -> None:
        self._request, self._passes, self._beside = request, passes, beside
        self.host = _host(request)

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

        plan = plan_export(self._mapped, host_target(self.host), PlanOptions(Overrides(pure=True)))
        label = f"wire-{self.host.kind.name}"
        extra = 0 if self._beside is None else self._beside.bytes_for(self._mapped)
        return Outline(
            "wire", label, plan.total_bytes, plan.total_bytes + extra, plan.source_bytes, rows_of(plan), plan.metadata,
            is_exact=False, beside=() if self._beside is None else (SUFFIX,),
        )  # fmt: skip

    def open(self, output: Path) -> WireRun:
        """Run the passes and measure curvature; scratch lies beside `output`.

        Raises:
            CalibrationError: the text is too short.
            EdgepackError: whatever passes or calibration find wrong.
        """
        from edgepack.export.wire.rounding import DEFAULT_TRELLIS, WireSettings

        request, changed = self._request, changed_by(self._passes, self._request)
        settings = WireSettings(
            self.host, rdo=request.rdo or 0.0, drift=request.drift, device=request.device,
            trellis=DEFAULT_TRELLIS if request.trellis is None else int(request.trellis),
        )  # fmt: skip
        text = None if request.calibration is None else Path(request.calibration)
        found = read_calibration(changed.checkpoint, text, request.device)
        self._notes = changed.notes
        return WireRun(
            changed.checkpoint, output, settings, found, pre=request.pre, about=changed.metadata,
            beside=self._beside, threads=request.threads, resume=request.resume, progress=request.progress,
        )  # fmt: skip

    def made(self, run: WireRun, trial: Trial) -> Made:
        """What a run's last try made."""
        assert trial.result is not None, "the last try's files are there"
        outline = self._outline_of(trial, trial.result.plan)
        bits = round(8 * trial.archive_bytes / run.weights, 4)
        more: dict[str, Json] = {
            "archive_bytes": trial.archive_bytes, "gguf_bytes": trial.gguf_bytes, "bits_per_weight": bits,
            "scale": trial.scale, "predicted_kl": trial.result.loss, "trials": len(run.trials),
            "trellis": trial.result.plan.metadata[keys.WIRE_TRELLIS].value,
            "raised_rows": dict(trial.result.raised_rows),
        }  # fmt: skip
        lines = _lines(trial, trial.result, run.host, bits, len(run.trials))
        notes = (*self._mapped.notes, *self._notes)
        return Made(outline, (run.gguf,), run.adapters, archive=run.archive, notes=notes, lines=lines, more=more)

    def _outline_of(self, trial: Trial, plan: ExportPlan) -> Outline:
        return Outline(
            "wire", self.outline.label, trial.gguf_bytes, trial.gguf_bytes, plan.source_bytes, rows_of(plan),
            plan.metadata, beside=self.outline.beside,
        )  # fmt: skip


def _host(request: ExportRequest) -> Host:
    """The host asked for, or the largest that the device holds."""
    device, pre = request.for_device, request.pre
    host = find_host(request.host_type) if request.host_type else choose_host(request.source, device, pre=pre)
    check_host(request.source, host, device, pre=pre)
    return host


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
