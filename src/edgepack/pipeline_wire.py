"""Makes a GGUF whose archive has a promised size or fidelity: measures curvature once, then searches one scalar.

Rounding is left to `export.wire`, packing to `packaging`, scoring to `pipeline_fidelity`.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.atomic_file import check_output
from edgepack.errors import CheckFailedError, UsageError
from edgepack.gguf.types import string, u32
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from edgepack.export.wire import WireModel, WireResult, WireSettings
    from edgepack.gguf.types import Value
    from edgepack.progress import Progress
    from edgepack.quant.codecs.host_grids import Host

SEQUENCES = 40  # of 512 tokens: the curvature's pass takes three forward passes' time
TOLERANCE = 0.005  # of a wanted size: the archive is at most so much smaller, and never larger
_TRIES = 9
_LEAST_KL, _MOST_KL = 1e-6, 1.5  # predicted divergences between which a scale makes sense


@dataclass(frozen=True)
class Goal:
    """What the search must reach; exactly one is given.

    Attributes:
        bits: of the archive, for each weight that lies on a grid.
        max_size: of the archive, bytes.
        min_agreement: top-1 agreement that the lower end of its interval must reach.
        max_kl: mean divergence in nats that the upper end of its interval must not exceed.
    """

    bits: float | None = None
    max_size: int | None = None
    min_agreement: float | None = None
    max_kl: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.bits, self.max_size, self.min_agreement, self.max_kl) if value is not None]
        if len(given) != 1:
            raise UsageError("--target wire: expected exactly one of --bits, --max-size, --min-agreement, --max-kl")
        if given[0] <= 0 or (self.min_agreement or 0) >= 1:
            raise UsageError(f"--target wire: expected a goal above 0 (an agreement below 1), got {given[0]}")

    def wanted_bytes(self, weights: int) -> int | None:
        """The archive's size, where that is the goal."""
        return int(self.bits * weights / 8) if self.bits is not None else self.max_size


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
class WireOutcome:
    """What was written.

    Attributes:
        output: the GGUF, or the archive where one was asked for.
        trial: the scale that was kept.
        trials: how many were tried.
        weights: on grids.
        seconds: wall time.
    """

    output: Path
    trial: Trial
    trials: int
    weights: int
    seconds: float


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
    model: Path, text: Path | None, device: str, sequences: int = SEQUENCES, length: int | None = None
) -> Calibration:
    """Tokens of a text, or of what the model writes itself; raises CalibrationError for a text that is too short."""
    from edgepack.export.checkpoint import open_checkpoint
    from edgepack.pipeline_fidelity import read_text
    from edgepack.quant.calibration.text import own_samples, text_sequences

    checkpoint = open_checkpoint(model)
    if text is None:
        tokens = own_samples(checkpoint, sequences=sequences, length=length, device=device)
        return Calibration(tokens, hashlib.sha256(tokens.tobytes()).hexdigest())
    found = read_text(text)
    return Calibration(text_sequences(checkpoint, found.text, sequences=sequences, length=length), found.sha256)


class WireRun:
    """A model ready to be tried at any scale, with a scratch folder of its own; use it in a `with` block.

    Args:
        model: a Hugging Face folder.
        output: the file that will be written; scratch lies beside it.
        settings: how matrices are rounded.
        calibration: what curvature is measured on.
        threads: of packing; None for all.
        progress: told of each step.
    """

    def __init__(
        self,
        model: Path,
        output: Path,
        settings: WireSettings,
        calibration: Calibration,
        *,
        pre: str | None = None,
        threads: int | None = None,
        progress: Progress = silent,
    ) -> None:
        from edgepack.export.checkpoint import open_checkpoint
        from edgepack.export.wire import WireModel
        from edgepack.quant.wire.curvature import measure
        from edgepack.quant.wire.store import CurvatureStore

        check_output(output, None)
        self.path, self.threads, self.progress = model, threads, progress
        self.calibration = calibration
        self._folder = tempfile.TemporaryDirectory(prefix=".edgepack-wire-", dir=output.parent)
        self.scratch = Path(self._folder.name)
        self.gguf = self.scratch / f"{output.stem}.gguf"
        self.archive = self.scratch / f"{output.stem}.edgepack"
        self.trials: list[Trial] = []
        try:
            checkpoint = open_checkpoint(model)
            store = CurvatureStore(self.scratch / "curvature")
            store.fill(measure(checkpoint, calibration.tokens, device=settings.device, progress=progress))
            self.model: WireModel = WireModel(checkpoint, store, settings, pre=pre)
        except BaseException:
            self._folder.cleanup()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._folder.cleanup()

    def use(self, settings: WireSettings) -> None:
        """Round with other settings from now on; the curvature stays."""
        from edgepack.export.checkpoint import open_checkpoint
        from edgepack.export.wire import WireModel

        self.model = WireModel(open_checkpoint(self.path), self.model.curvatures, settings)
        self.trials = []

    def attempt(self, scale: float) -> Trial:
        """Round, write and pack at one scale; the files stay in the scratch folder until the next attempt."""
        from edgepack.export.gguf_file import write_gguf
        from edgepack.packaging.pack import pack_archive

        about: dict[str, Value] = {
            "edgepack.wire.calibration_sha256": string(self.calibration.sha256),
            "edgepack.wire.calibration_tokens": u32(self.calibration.tokens.size),
        }
        result = self.model.round(scale, self.scratch / "blocks", about, self.progress)
        written = write_gguf(result.plan, self.gguf, threads=self.threads, progress=self.progress)
        packed = pack_archive(self.gguf, self.archive, threads=self.threads, progress=self.progress)
        trial = Trial(scale, packed.bytes, written, result)
        self.trials.append(trial)
        return trial

    def scale_of(self, divergence: float) -> float:
        """The scale at which rounding alone is predicted to cost `divergence` nats a token."""
        return math.sqrt(24 * divergence / self.model.weights)

    def reach_size(self, wanted: int) -> Trial:
        """The finest scale whose archive has at most `wanted` bytes, and at least 1 - TOLERANCE of them.

        Raises:
            UsageError: even the coarsest scale gives more; the text says how much.
        """
        low, high = math.log2(self.scale_of(_LEAST_KL)), math.log2(self.scale_of(_MOST_KL))
        best = None
        per_bit = self._slope(self.model.weights / 8)  # bytes that a doubling of the scale saves; less at low rates
        at = min(max(self._start(wanted * (1 - TOLERANCE / 2), per_bit), low), high)
        for _ in range(_TRIES):
            trial = self.attempt(2.0**at)
            excess = trial.archive_bytes - wanted * (1 - TOLERANCE / 2)
            if trial.archive_bytes <= wanted and (best is None or trial.scale <= best.scale):
                best = trial
                if trial.archive_bytes >= wanted * (1 - TOLERANCE):
                    return trial
            if excess > 0 and at >= high:
                raise UsageError(
                    f"--max-size: expected at least {trial.archive_bytes} bytes, the least that this model packs to"
                    f" on host {self.model.settings.host.kind.name}, got {wanted}"
                )
            if excess < 0 and at <= low:
                return trial
            low, high = (max(low, at), high) if excess > 0 else (low, min(high, at))
            per_bit = self._slope(per_bit)
            at = min(max(at + excess / per_bit, low), high)
        if best is None:
            raise CheckFailedError(f"--max-size: no scale gave at most {wanted} bytes in {_TRIES} tries")
        return self._repeat(best)

    def _start(self, wanted: float, per_bit: float) -> float:
        """The logarithm of the scale to try first: from the nearest trial so far."""
        if not self.trials:
            return math.log2(self.scale_of(0.004))
        nearest = min(self.trials, key=lambda trial: abs(trial.archive_bytes - wanted))
        return math.log2(nearest.scale) + (nearest.archive_bytes - wanted) / per_bit

    def _slope(self, default: float) -> float:
        """Bytes that a doubling of the scale saves, from the last two trials."""
        if len(self.trials) < 2:
            return default
        first, second = self.trials[-2:]
        doublings = math.log2(second.scale / first.scale)
        saved = first.archive_bytes - second.archive_bytes
        return max(saved / doublings, default / 8) if abs(doublings) > 1e-9 else default

    def _repeat(self, best: Trial) -> Trial:
        return best if self.trials[-1] is best else self.attempt(best.scale)

    def reach_fidelity(self, passes: Callable[[Path], tuple[bool, float]], exponent: float) -> Trial:
        """The coarsest scale that passes.

        Args:
            passes: whether a GGUF is good enough, and by what factor its error may grow.
            exponent: the error grows with the scale to this power.

        Raises:
            CheckFailedError: no scale passes.
        """
        low, high = math.log2(self.scale_of(_LEAST_KL)), math.log2(self.scale_of(_MOST_KL))
        at, best = math.log2(self.scale_of(0.004)), None
        for _ in range(_TRIES):
            trial = self.attempt(2.0**at)
            passed, margin = passes(self.gguf)
            if passed:
                best = trial
                if margin < 1.05:
                    return trial
            elif at <= low + 1e-9:
                break
            low, high = (max(low, at), high) if passed else (low, min(high, at))
            step = math.log2(max(margin, 1e-3)) / exponent
            following = at + max(-3.0, min(step * 0.97, 3.0))
            at = following if low < following < high else (low + high) / 2
            if high - low < 0.02:
                break
        if best is None:
            name = self.model.settings.host.kind.name
            raise CheckFailedError(f"wire: no scale on host {name} reaches the goal: use a larger host or a lower goal")
        return self._repeat(best)


def choose_host(model: Path, device: str | None, *, pre: str | None = None) -> Host:
    """The largest host with which the model fits `device`; q6k without a device.

    Raises:
        CheckFailedError: not even the smallest fits.
    """
    from edgepack.quant.codecs.host_grids import HOSTS

    if device is None:
        return HOSTS["q6k"]
    fitting = [host for host in HOSTS.values() if fits_device(model, host, device, pre=pre)]
    if not fitting:
        raise CheckFailedError(f"--for-device {device}: no host fits, not even q4k: use a smaller model")
    return fitting[0]


def check_host(model: Path, host: Host, device: str | None, *, pre: str | None = None) -> None:
    """Refuse a host that does not fit; raises CheckFailedError, naming the largest that does."""
    if device is not None and not fits_device(model, host, device, pre=pre):
        best = choose_host(model, device, pre=pre)
        name = host.kind.name
        raise CheckFailedError(f"--host {name}: does not fit {device}; the largest that does is {best.kind.name}")


def fits_device(model: Path, host: Host, device: str, *, pre: str | None = None) -> bool:
    """Whether a GGUF of the host's type fits the device: `edgepack fit` on its header."""
    from edgepack.edge.devices import find_device
    from edgepack.edge.fit import Fitter
    from edgepack.edge.fit_shape import read_shape
    from edgepack.export.mapped_model import open_model
    from edgepack.export.plan import PlanOptions, plan_export
    from edgepack.export.wire import host_target
    from edgepack.gguf.reader import read_header
    from edgepack.gguf.writer import GGUFWriter
    from edgepack.quant.type_choice import Overrides

    plan = plan_export(open_model(model, pre=pre), host_target(host), PlanOptions(Overrides(pure=True)))
    with tempfile.TemporaryDirectory(prefix="edgepack-fit-") as folder:
        path = Path(folder, "header.gguf")
        with path.open("wb") as stream:  # a header and a hole: no weights are needed to know the memory
            GGUFWriter(stream, plan.metadata, plan.infos).write_header()
            stream.truncate(plan.total_bytes)
        fit = Fitter(read_shape(read_header(path)), find_device(device)).choose()
    return fit.fits


def export_wire(
    model: Path,
    output: Path,
    settings: WireSettings,
    goal: Goal,
    *,
    calibration: Path | None = None,
    text: Path | None = None,
    pre: str | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> WireOutcome:
    """Write the GGUF (or, where `output` ends in `.edgepack`, its archive) that reaches `goal`.

    Args:
        model: a Hugging Face folder.
        output: appears only when it is whole.
        settings: how matrices are rounded.
        goal: what the search must reach.
        calibration: UTF-8 text; the model's own samples where None.
        text: what fidelity is measured on; the reference's own samples where None.
        pre: the pre-tokenizer's name where its structure is not known.
        threads: None for all.
        progress: told of each step.

    Raises:
        EdgepackError: as `WireRun` and its searches.
    """
    started = time.monotonic()
    found = read_calibration(model, calibration, settings.device)
    with WireRun(model, output, settings, found, pre=pre, threads=threads, progress=progress) as run:
        wanted = goal.wanted_bytes(run.model.weights)
        if wanted is not None:
            trial = run.reach_size(wanted)
        else:
            trial = run.reach_fidelity(_gate(model, text, goal), 1.0 if goal.min_agreement is not None else 2.0)
        made = run.archive if output.suffix == ".edgepack" else run.gguf
        shutil.move(made, output)
        return WireOutcome(output, trial, len(run.trials), run.model.weights, time.monotonic() - started)


def _gate(model: Path, text: Path | None, goal: Goal) -> Callable[[Path], tuple[bool, float]]:
    """Scores a candidate; its margin is the factor by which its error could grow."""
    from edgepack.pipeline_fidelity import ScoringOptions, run_validation

    options = ScoringOptions(max_chunks=24)

    def passes(candidate: Path) -> tuple[bool, float]:
        statistics = run_validation(model, [candidate], text, options).candidates[0].validation.statistics
        if goal.max_kl is not None:
            margin = goal.max_kl / max(statistics.divergence.interval()[1], 1e-12)
        else:
            allowed = 1 - (goal.min_agreement or 0)
            margin = allowed / max(1 - statistics.agreement.share_interval()[0], 1e-12)
        return margin >= 1, margin

    return passes


__all__ = ["Calibration", "Goal", "Trial", "WireOutcome", "WireRun", "export_wire", "read_calibration"]
