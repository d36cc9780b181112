"""A model on grids at any scale: measures curvature once, then rounds, writes and packs, and searches the scale.

Rounding is left to `export.wire.plan`, packing to `packaging`; what the goal is, to `pipeline.wire`.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.atomic_file import check_output
from edgepack.errors import CheckFailedError, NumericError, UsageError
from edgepack.gguf.types import string, u32
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from edgepack.export.wire.plan import WireModel, WireResult, WireSettings
    from edgepack.gguf.types import Value
    from edgepack.progress import Progress

SEQUENCES = 40  # of 512 tokens: the curvature's pass takes three forward passes' time
TOLERANCE = 0.005  # of a wanted size: the archive is at most so much smaller, and never larger
_TRIES = 9
_NEAR = 0.1  # of a wanted size: from there on a search moves only the scale
_LEAST_KL, _MOST_KL = 1e-6, 1.5  # predicted divergences between which a scale makes sense


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
    model: Path, text: Path | None, device: str, sequences: int = SEQUENCES, length: int | None = None
) -> Calibration:
    """Tokens of a text, or of what the model writes itself; raises CalibrationError for a text that is too short."""
    from edgepack.export.checkpoint import open_checkpoint
    from edgepack.pipeline.fidelity import read_text
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
        from edgepack.export.wire.plan import WireModel
        from edgepack.quant.calibration.curvature import measure
        from edgepack.quant.calibration.curvature_store import CurvatureStore

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
            entering = self.scratch / "entering"
            store.fill(measure(checkpoint, calibration.tokens, entering, device=settings.device, progress=progress))
            self.model: WireModel = WireModel(checkpoint, store, settings, calibration.tokens, pre=pre)
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
        from edgepack.export.wire.plan import WireModel

        self.model = WireModel(open_checkpoint(self.path), self.model.curvatures, settings, self.calibration.tokens)
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
        self.model.keep_trellises(False)
        best, reach = None, 0.0  # how near `low` a scale counts as the finest
        per_bit = self._slope(self.model.weights / 8)  # bytes that a doubling of the scale saves; less at low rates
        at = min(max(self._start(wanted * (1 - TOLERANCE / 2), per_bit), low), high)
        for _ in range(_TRIES):
            try:
                trial = self.attempt(2.0**at)
            except NumericError:  # so fine that some rows do not fit the host
                if at >= high:
                    raise
                low, at, reach = at, min(at + 1.0, high), 0.5
                continue
            excess = trial.archive_bytes - wanted * (1 - TOLERANCE / 2)
            if abs(excess) < _NEAR * wanted:
                self.model.keep_trellises(True)
            if trial.archive_bytes <= wanted and (best is None or trial.scale <= best.scale):
                best = trial
                if trial.archive_bytes >= wanted * (1 - TOLERANCE):
                    return trial
            if excess > 0 and at >= high:
                raise UsageError(
                    f"--max-size: expected at least {trial.archive_bytes} bytes, the least that this model packs to"
                    f" on host {self.model.settings.host.kind.name}, got {wanted}"
                )
            if excess < 0 and at <= low + reach:
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
