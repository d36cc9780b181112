"""One wire export under way: measures curvature once, then rounds, writes and packs at any scale.

Rounding is left to `export.wire.plan`, packing to `packaging`; which scale reaches a goal to `pipeline.goals.scalar`,
what a request means to `makers.wire`.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.gguf import keys
from edgepack.gguf.types import GGMLType, string, u32
from edgepack.pipeline.goals.scalar import scale_of
from edgepack.pipeline.makers.wire_scratch import Tried, WireScratch, curvature_place
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from edgepack.crew import Crew
    from edgepack.export.plan import ExportPlan
    from edgepack.export.wire.plan import WireModel, WireResult, WireSettings
    from edgepack.gguf.types import Value
    from edgepack.model import Checkpoint
    from edgepack.pipeline.goals.judging import Judge, Rung
    from edgepack.pipeline.makers.projector import ProjectorFile
    from edgepack.pipeline.makers.separate import SeparateAdapter
    from edgepack.progress import Progress
    from edgepack.quant.calibration.curvature_store import CurvatureStore

SEQUENCES = 40  # of 512 tokens: the curvature's pass takes three forward passes' time


@dataclass(frozen=True)
class Trial:
    """One scale tried.

    Attributes:
        scale: the scalar.
        archive_bytes: of the archive.
        gguf_bytes: of the GGUF.
        result: the rounding; None of one that an interrupted run had tried, whose files are gone.
    """

    scale: float
    archive_bytes: int
    gguf_bytes: int
    result: WireResult | None


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
        eyes: what sees, likewise.
        threads: of rounding and packing; None for all.
        origin: writes the derivation of what a try made into its scratch folder; None to pack none.
        resume: whether to go on with what an interrupted run of the same model, text and settings left.
        shared: a folder in which the curvature stays for other runs of the same model and text; None keeps none.
        crew: who rounds and writes in place of threads; None for this process.
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
        eyes: ProjectorFile | None = None,
        threads: int | None = None,
        origin: Callable[[ExportPlan, WireRun], Path] | None = None,
        resume: bool = False,
        shared: Path | None = None,
        crew: Crew | None = None,
        progress: Progress = silent,
    ) -> None:
        self.checkpoint, self.threads, self.progress = checkpoint, threads, progress
        self.calibration, self._pre, self._about = calibration, pre, dict(about or {})
        self.adapters: tuple[Path, ...] = ()
        self.projector: Path | None = None
        self._origin, self._crew = origin, crew
        self._kept = WireScratch(output, (calibration.tokens, settings, pre), checkpoint, resume=resume)
        self.scratch = self._kept.folder
        self._shared = shared
        self._interrupted = list(self._kept.tried[:-1])  # all but the last are as good as tried
        self.gguf = self.scratch / f"{output.stem}.gguf"
        self.archive = self.scratch / f"{output.stem}.edgepack"
        self.trials: list[Trial] = []
        with self._tidy():
            self.model: WireModel = self._opened(settings, self._measured(settings.device))
            if beside is not None:
                self.adapters = (beside.write(self.model.model, self.gguf),)
            if eyes is not None:
                self.projector = eyes.write(self.gguf.with_name(eyes.name))

    def _measured(self, device: str) -> CurvatureStore:
        from edgepack.quant.calibration.curvature import measure
        from edgepack.quant.calibration.curvature_store import CurvatureStore

        place = curvature_place(self._shared, self.scratch, self.calibration.tokens, self.checkpoint, self.gguf)
        store = CurvatureStore(place / "curvature")
        if not store.complete:
            entering, tokens = place / "entering", self.calibration.tokens
            store.fill(
                measure(self.checkpoint, tokens, entering, device=device, progress=self.progress, crew=self._crew)
            )
        return store

    def _opened(self, settings: WireSettings, store: CurvatureStore) -> WireModel:
        from edgepack.export.wire.plan import WireModel

        tokens = self.calibration.tokens
        return WireModel(self.checkpoint, store, settings, tokens, pre=self._pre, threads=self.threads, crew=self._crew)

    @contextmanager
    def _tidy(self) -> Iterator[None]:
        """Remove the scratch after an error; after an interruption `--resume` can go on."""
        try:
            yield
        except Exception:
            self._kept.remove()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        if kind is None or issubclass(kind, Exception):
            self._kept.remove()

    def use(self, settings: WireSettings) -> None:
        """Round with other settings from now on; the curvature stays."""
        self.model = self._opened(settings, self.model.curvatures)
        self.trials, self._interrupted = [], []

    def attempt(self, scale: float) -> Trial:
        """Round, write and pack at one scale; the files stay in the scratch folder until the next attempt."""
        from edgepack.export.gguf_file import write_gguf
        from edgepack.packaging.pack import pack_archive

        if self._interrupted and self._interrupted[0].scale == scale:
            return self._replayed(self._interrupted.pop(0))
        self._interrupted = []
        about: dict[str, Value] = {
            **self._about,
            keys.WIRE_CALIBRATION_SHA256: string(self.calibration.sha256),
            keys.WIRE_CALIBRATION_TOKENS: u32(self.calibration.tokens.size),
        }
        result = self.model.round(scale, self.scratch / "blocks", about, self.progress)
        written = write_gguf(result.plan, self.gguf, threads=self.threads, progress=self.progress, crew=self._crew)
        include = self._beside if self._origin is None else (*self._beside, self._origin(result.plan, self))
        packed = pack_archive(self.gguf, self.archive, include=include, threads=self.threads, progress=self.progress)
        trial = Trial(scale, packed.bytes, written, result)
        hosts = {name: kind.name for name, kind in self.model.hosts.items()}
        self._kept.note(Tried(scale, packed.bytes, written, self.model.trellises, hosts))
        self.trials.append(trial)
        return trial

    def _replayed(self, tried: Tried) -> Trial:
        """What an interrupted run had found at this scale."""
        self.model.trellises = tried.trellises
        self.model.hosts = {name: GGMLType[kind] for name, kind in tried.hosts.items()}
        self.trials.append(Trial(tried.scale, tried.archive_bytes, tried.gguf_bytes, None))
        return self.trials[-1]

    def predicted_bytes(self, scales: Sequence[float]) -> list[float]:
        """About what archives at some scales take, without making any."""
        beside = sum(path.stat().st_size for path in self._beside)
        return [size + beside for size in self.model.predicted_bytes(scales)]

    @property
    def _beside(self) -> tuple[Path, ...]:
        """What goes into the archive behind the model."""
        return (*self.adapters, *([] if self.projector is None else [self.projector]))

    @property
    def weights(self) -> int:
        """Weights on grids."""
        return self.model.weights

    @property
    def host(self) -> str:
        """The type that holds them."""
        if self.model.settings.memory:
            return "mixed"
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
