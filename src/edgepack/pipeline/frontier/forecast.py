"""How long a study will take: every kind of work measured on one and on two of the model's blocks, and carried on.

Work in blocks grows with their number, that of embedding and head does not; so two cuts of the model say what the
whole takes, in seconds, whatever its size. Doing the work is left to the modules that are timed.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.edge.fidelity.kept_predictions import encode_logits, kept_bytes
from edgepack.edge.fidelity.scorers.scorer import Chunk
from edgepack.edge.fidelity.scoring import open_candidate, text_to_score
from edgepack.export.gguf_file import write_gguf
from edgepack.export.mapped_model import map_checkpoint
from edgepack.export.plan import PlanOptions, plan_export
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.trust.policy import ANYONE
from edgepack.pipeline.export import run_export
from edgepack.pipeline.frontier.catalogue import IMPORTANCE, TYPES
from edgepack.pipeline.makers.opened import opened_checkpoint, with_original
from edgepack.pipeline.makers.wire_run import Calibration, WireRun, read_calibration
from edgepack.pipeline.options import WIRE
from edgepack.pipeline.request import ExportRequest
from edgepack.processors import default_threads
from edgepack.quant.codecs.ggml.host_grids import find_host
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from edgepack.export.mapped import MappedModel
    from edgepack.model import Checkpoint
    from edgepack.pipeline.frontier.points import Spec
    from edgepack.pipeline.frontier.request import StudyRequest

_CALIBRATED = "calibration"  # what `Spec.needs` says of files that are made of the text's curvature
_TRIES = 6  # of a wire's search, on average
_CHUNK = 512  # tokens that are timed; longest that is scored
_SEQUENCES = 2  # that the curvature is timed on
_SCALE_KL = 0.02  # predicted divergence of the wire that is timed


@dataclass
class Forecast:
    """Seconds of every part of a study.

    Attributes:
        once: what is done once: `original`, `importance`, `curvature`.
        points: id → making, packing and scoring.
        disk_bytes: of the original's predictions.
        blocks: of the model.
        measured_seconds: what measuring took.
    """

    once: dict[str, float] = field(default_factory=dict)
    points: dict[str, float] = field(default_factory=dict)
    disk_bytes: int = 0
    blocks: int = 0
    measured_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(self.once.values()) + sum(self.points.values())

    def as_json(self) -> dict[str, Any]:
        """The forecast as an object."""
        return {**asdict(self), "seconds": self.seconds}


def forecast(study: StudyRequest, specs: Sequence[Spec], done: Sequence[str] = ()) -> Forecast:
    """Time every kind of work on this machine and add up.

    Args:
        study: what is asked for.
        specs: its points.
        done: ids of those that are there already.

    Raises:
        EdgepackError: the model cannot be opened, cut or run; a text is too short.
    """
    began = time.monotonic()
    left = [spec for spec in specs if spec.id not in done]
    with opened(study) as checkpoint:
        blocks = _blocks(checkpoint)
        cuts = [_cut(checkpoint, count, blocks) for count in (1, 2)]
        with tempfile.TemporaryDirectory(prefix="edgepack-forecast-") as folder:
            measured = [_Timed(study, cut, left, Path(folder)).seconds() for cut in cuts]
    whole = {name: _carried(measured[0][name], measured[1][name], blocks) for name in measured[1]}
    chunks, scored = _scored(study, checkpoint)
    found = Forecast(blocks=blocks, disk_bytes=kept_bytes(scored, int(checkpoint.config.get("vocab_size", 0))))
    if left:
        found.once["original"] = chunks * whole["original"]
    if any(spec.needs == IMPORTANCE for spec in left):
        found.once["importance"] = study.sequences * whole["score"]
    if any(spec.needs == _CALIBRATED for spec in left):
        found.once["curvature"] = study.sequences * whole["curvature"]
    for spec in left:
        found.points[spec.id] = _making(spec, whole) + whole["pack"] + chunks * whole["score"]
    found.measured_seconds = time.monotonic() - began
    return found


@contextmanager
def opened(study: StudyRequest) -> Iterator[Checkpoint]:
    """The study's model as a checkpoint, a GGUF read back."""
    request = ExportRequest(study.model, WIRE, bits=4.0)
    with with_original(request) as ready:
        yield opened_checkpoint(ready)


def _blocks(checkpoint: Checkpoint) -> int:
    from edgepack.export.config import ModelConfig

    return ModelConfig(checkpoint.config).n_layers


def _cut(checkpoint: Checkpoint, count: int, blocks: int) -> Checkpoint:
    from edgepack.quant.passes.prune.layers import keep_layers

    return checkpoint if blocks <= count else keep_layers(checkpoint, range(count))


def _carried(one: float, two: float, blocks: int) -> float:
    """Seconds of the whole model, from those of one block and of two."""
    return two if blocks <= 2 else max(one, two) + (blocks - 2) * max(two - one, 0.0)


def _making(spec: Spec, seconds: Mapping[str, float]) -> float:
    if spec.needs != _CALIBRATED:
        return seconds[_kind(spec)]
    return seconds["refined"] if spec.options.get("refine") else _TRIES * seconds["wire"]


def _kind(spec: Spec) -> str:
    return f"export {spec.needs} {spec.options['target']}"


def _scored(study: StudyRequest, checkpoint: Checkpoint) -> tuple[float, int]:
    """(pieces of `_CHUNK` tokens that are read, predictions that are scored) of all texts."""
    from edgepack.edge.fidelity.scorers.scorer import Chunking
    from edgepack.edge.fidelity.scorers.torch import CheckpointTokenizer

    tokenizer, ctx = CheckpointTokenizer(checkpoint.path), study.scoring.ctx or _CHUNK
    read, scored = 0.0, 0
    for path in study.texts:
        tokens = len(tokenizer.tokenize(text_to_score(path).text))
        chunking = Chunking(min(ctx, tokens), study.scoring.stride, study.scoring.max_chunks)
        read += chunking.count(tokens) * chunking.ctx / _CHUNK
        scored += chunking.scored(tokens)
    return read, scored


class _Timed:
    """Kinds of work on one cut of the model, each timed once."""

    def __init__(self, study: StudyRequest, cut: Checkpoint, specs: Sequence[Spec], folder: Path) -> None:
        self._study, self._cut, self._specs, self._folder = study, cut, specs, folder
        self._threads = study.scoring.threads or None

    def seconds(self) -> Mapping[str, float]:
        """Kind → seconds; of scoring, of `_CHUNK` tokens."""
        found: dict[str, float] = {}
        mapped = map_checkpoint(self._cut)
        path = self._folder / "timed.gguf"
        for kind in dict.fromkeys(_kind(spec) for spec in self._specs if spec.needs != _CALIBRATED):
            _export, needs, target = kind.split(" ")
            found[kind] = _time(partial(self._export, mapped, target, path, weighted=needs == IMPORTANCE))
        if not path.is_file():
            self._export(mapped, "gguf-q8", path, weighted=False)
        archive = self._folder / "timed.edgepack"
        found["pack"] = sum(
            _time(partial(pack_archive, path, archive, grids=grids, threads=self._threads)) for grids in (False, True)
        )
        tokens = read_calibration(self._cut, self._study.calibration, self._study.device, _SEQUENCES,
                                  self._study.length).tokens  # fmt: skip
        share = tokens.shape[1] / _CHUNK
        chunk = Chunk(0, 0, tokens[0].astype(np.int32), tokens[0, 1:].astype(np.int32), tokens.shape[1] // 2)
        found["original"], found["score"] = (each / share for each in self._scoring(chunk, path))
        if any(spec.needs == _CALIBRATED for spec in self._specs):
            found |= self._calibrated(tokens)
        return found

    def _export(self, mapped: MappedModel, target: str, path: Path, *, weighted: bool) -> None:
        ones = {name: np.ones(rows.shape[-1], np.float32) for name, rows in mapped.tensors.items()
                if len(rows.shape) == 2}  # fmt: skip
        plan = plan_export(mapped, find_target(target), PlanOptions(importance=ones if weighted else None))
        write_gguf(plan, path, threads=self._threads)

    def _scoring(self, chunk: Chunk, path: Path) -> tuple[float, float]:
        """Seconds of the original and of a file, for one chunk."""
        from edgepack.edge.fidelity.agreement import compare
        from edgepack.pipeline.fidelity import blockwise_scorer

        options, start = self._study.scoring, chunk.first
        with closing(blockwise_scorer(self._cut, options)) as original:
            first = _time(lambda: encode_logits(np.asarray(original.score(chunk))))
            expected = np.asarray(original.score(chunk))
        from dataclasses import replace

        candidate = open_candidate(path, replace(options, trust=ANYONE), options.threads or default_threads())
        with closing(candidate):
            candidate.score(chunk)
            second = _time(lambda: compare(expected, candidate.score(chunk), chunk.scored_targets, start))
        return first, second

    def _calibrated(self, tokens: np.ndarray[Any, np.dtype[np.int64]]) -> Mapping[str, float]:
        """Seconds of the curvature a sequence, of one try of a wire and of one refinement."""
        from edgepack.export.wire.rounding import WireSettings

        refining = {bool(spec.options.get("refine")) for spec in self._specs if spec.needs == _CALIBRATED}
        output, settings = self._folder / "wire.gguf", WireSettings(find_host("q8"), device=self._study.device)
        began, found = time.monotonic(), dict[str, float]()
        shared = Path(tempfile.mkdtemp(prefix="shared-", dir=self._folder))
        calibration = Calibration(tokens, "0" * 64)
        with WireRun(self._cut, output, settings, calibration, threads=self._threads, shared=shared) as run:
            found["curvature"] = (time.monotonic() - began) / len(tokens)
            if False in refining:
                found["wire"] = _time(lambda: run.attempt(run.scale_of(_SCALE_KL)))
        if True in refining:
            found["refined"] = _time(lambda: run_export(self._refined(tokens, shared)))
        return found

    def _refined(self, tokens: np.ndarray[Any, np.dtype[np.int64]], shared: Path) -> ExportRequest:
        """A refinement of the cut, whose curvature is there."""
        study = self._study
        return ExportRequest(
            study.model, TYPES["Q4_K_M"], refine=True, device=study.device, calibration=study.calibration,
            sequences=len(tokens), length=study.length, output=self._folder / "refined.gguf", force=True,
            threads=self._threads, original=self._cut, shared=shared,
        )  # fmt: skip


def _time(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
