"""How long a study will take: a few rows encoded, a block run, one piece of text scored, and carried on by the weights.

What takes long is not done: it is a multiple, measured once, of what is. Some seconds tell about hours; after each file
of a study the rest is corrected by how long that one took. Doing the work is left to the modules that are timed.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.edge.fidelity.agreement import compare
from edgepack.edge.fidelity.kept_predictions import encode_logits, kept_bytes
from edgepack.edge.fidelity.scorers.scorer import Chunk
from edgepack.edge.fidelity.scoring import open_candidate, text_to_score
from edgepack.export.gguf_file import write_gguf
from edgepack.export.mapped_model import map_checkpoint
from edgepack.export.plan import plan_export
from edgepack.packaging.trust.policy import ANYONE
from edgepack.pipeline.frontier.catalogue import IMPORTANCE, TYPES
from edgepack.pipeline.makers.opened import opened_checkpoint, with_original
from edgepack.pipeline.makers.wire_run import read_calibration
from edgepack.pipeline.options import WIRE
from edgepack.pipeline.request import ExportRequest
from edgepack.processors import default_threads
from edgepack.quant.codecs.ggml.codec import quantize_rows
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edgepack.export.mapped import MappedModel
    from edgepack.model import Checkpoint
    from edgepack.pipeline.frontier.points import Spec
    from edgepack.pipeline.frontier.request import StudyRequest
    from edgepack.pipeline.makers.refined_time import ExpectedTime

_CALIBRATED = "calibration"  # what `Spec.needs` says of files that are made of the text's curvature
_CHUNK = 512  # tokens of a piece that times are told of
_TIMED = 128  # tokens that are scored for it
_ROWS = 64  # encoded in each type
# Measured on studies of SmolLM2 135M and books-llama-6m, two cores. All tries of a wire take .9 of one rounding of all
# weights by refinement (53 to 82 s beside 80 s), and what does not grow with the model 15 s (18 to 24 s for 6 M).
_WIRE_SHARE, _WIRE_SECONDS = 0.9, 15.0
_PACK_SECONDS, _PACK_SECONDS_A_WEIGHT = 0.5, 2e-8  # both coders: .5 to 1.6 s for 6 M weights, 2 to 4 s for 135 M
_WRITE_SECONDS_A_WEIGHT = 4e-9  # reading 2 bytes and writing 1: 1.1 s for 135 M weights as Q8_0, all of it


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
    """Time a sample of every kind of work on this machine and add up.

    Args:
        study: what is asked for.
        specs: its points.
        done: ids of those that are there already.

    Raises:
        EdgepackError: the model cannot be opened, cut or run; a text is too short.
    """
    began = time.monotonic()
    left = [spec for spec in specs if spec.id not in done]
    with opened(study) as checkpoint, tempfile.TemporaryDirectory(prefix="edgepack-forecast-") as folder:
        blocks = _blocks(checkpoint)
        chunks, scored = _scored(study, checkpoint)
        found = Forecast(blocks=blocks, disk_bytes=kept_bytes(scored, int(checkpoint.config.get("vocab_size", 0))))
        if left:
            _add(found, _Timed(study, checkpoint, Path(folder)), left, chunks)
    found.measured_seconds = time.monotonic() - began
    return found


def _add(found: Forecast, timed: _Timed, left: Sequence[Spec], chunks: float) -> None:
    """Seconds of all that is left; `chunks` pieces are read of the texts."""
    study = timed.study
    calibrated = [spec for spec in left if spec.needs == _CALIBRATED]
    refining = timed.refining() if calibrated else None
    original, score = timed.scoring(found.blocks)
    found.once["original"] = chunks * original
    if any(spec.needs == IMPORTANCE for spec in left):
        found.once["importance"] = study.sequences * score
    if refining is not None:
        found.once["curvature"] = refining.curvature
    for spec in left:
        making = timed.encoding(spec) if spec.needs != _CALIBRATED else _calibrated(spec, refining)
        found.points[spec.id] = making + timed.packing + chunks * score


def _calibrated(spec: Spec, refining: ExpectedTime | None) -> float:
    """Seconds of a refined file, or of all tries of a wire."""
    assert refining is not None
    if spec.options.get("refine"):
        return refining.rounding + refining.smoothing
    return _WIRE_SECONDS + _WIRE_SHARE * refining.once


@contextmanager
def opened(study: StudyRequest) -> Iterator[Checkpoint]:
    """The study's model as a checkpoint, a GGUF read back."""
    request = ExportRequest(study.model, WIRE, bits=4.0, **study.remote)
    with with_original(request) as ready:
        yield opened_checkpoint(ready)


def _blocks(checkpoint: Checkpoint) -> int:
    from edgepack.export.config import ModelConfig

    return ModelConfig(checkpoint.config).n_layers


def _cut(checkpoint: Checkpoint, blocks: int) -> Checkpoint:
    """The first block alone, with embedding and head."""
    from edgepack.quant.passes.prune.layers import keep_layers

    return checkpoint if blocks <= 1 else keep_layers(checkpoint, range(1))


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
    """Samples of one model's work.

    Args:
        study: what is asked for.
        checkpoint: its model.
        folder: for a file of one block.
    """

    def __init__(self, study: StudyRequest, checkpoint: Checkpoint, folder: Path) -> None:
        self.study, self._checkpoint, self._folder = study, checkpoint, folder
        self._mapped = map_checkpoint(checkpoint)
        self._weights = sum(prod(rows.shape) for rows in self._mapped.tensors.values())
        self._threads = study.scoring.threads or default_threads()
        self._rates: dict[tuple[int, bool], float] = {}
        self._sample = _sample(self._mapped)
        self.packing = _PACK_SECONDS + self._weights * _PACK_SECONDS_A_WEIGHT

    def encoding(self, spec: Spec) -> float:
        """Seconds of a file of ggml's types: of its most frequent one, for all weights."""
        kind, weighted = find_target(str(spec.options["target"])).default, spec.needs == IMPORTANCE
        if (kind, weighted) not in self._rates:
            rows = self._sample if self._sample.shape[1] % kind.block_size == 0 else self._sample.reshape(1, -1)
            rows = rows[:, : rows.shape[1] // kind.block_size * kind.block_size]
            ones = np.ones(rows.shape[1], np.float32) if weighted else None
            quantizer = spec.options.get("quantizer", "edgepack")
            quantize_rows(kind, rows[:1], ones, quantizer)  # builds a type's tables
            self._rates[kind, weighted] = _time(lambda: quantize_rows(kind, rows, ones, quantizer)) / rows.size
        rate = self._rates[kind, weighted] / self._threads
        return self._weights * (rate + _WRITE_SECONDS_A_WEIGHT)

    def refining(self) -> ExpectedTime:
        """Seconds of curvature, of one refinement and of what comes in front of it."""
        from edgepack.pipeline.makers.refined_time import expected

        study = self.study
        return expected(
            ExportRequest(
                study.model, TYPES["Q4_K_M"], refine=True, smooth=True, device=study.device,
                calibration=study.calibration, sequences=study.sequences, length=study.length,
                threads=study.scoring.threads or None, original=self._checkpoint,
            )
        )  # fmt: skip

    def scoring(self, blocks: int) -> tuple[float, float]:
        """Seconds of the original and of a file for `_CHUNK` tokens: of one block with the head, and of the others."""
        from edgepack.pipeline.makers.refined_time import block_seconds

        tokens = read_calibration(self._checkpoint, self.study.calibration, self.study.device, 1, self._length).tokens[
            0
        ]
        cut, path = _cut(self._checkpoint, blocks), self._folder / "timed.gguf"
        write_gguf(plan_export(map_checkpoint(cut), find_target("gguf-q8")), path, threads=self._threads)
        chunk = Chunk(0, 0, tokens.astype(np.int32), tokens[1:].astype(np.int32), len(tokens) // 2)
        first, second = _scored_once(self.study, cut, chunk, path)
        rest = (blocks - 1) * block_seconds(self._checkpoint, self.study.device, len(tokens))
        return (first + rest) * _CHUNK / len(tokens), (second + rest) * _CHUNK / len(tokens)

    @property
    def _length(self) -> int:
        """Tokens that are scored; no more than the study's calibration takes."""
        from edgepack.quant.calibration.text import sequence_length

        return min(sequence_length(self._checkpoint, _TIMED), self.study.length or _TIMED)


def _sample(mapped: MappedModel) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The first rows of the first block's largest matrix; float32 [rows, columns]."""
    inside = [rows for name, rows in mapped.tensors.items() if name.startswith("blk.0.") and len(rows.shape) > 1]
    largest = max(inside or mapped.tensors.values(), key=lambda rows: prod(rows.shape))
    return np.ascontiguousarray(largest.read(0, min(_ROWS, prod(largest.shape[:-1]))))


def _scored_once(study: StudyRequest, cut: Checkpoint, chunk: Chunk, path: Path) -> tuple[float, float]:
    """Seconds of the original and of a file for one piece, each the second time that it runs."""
    from edgepack.pipeline.fidelity import blockwise_scorer

    options, start = study.scoring, chunk.first
    with closing(blockwise_scorer(cut, options)) as original:
        expected = np.asarray(original.score(chunk))
        first = _time(lambda: encode_logits(np.asarray(original.score(chunk))))
    with closing(
        open_candidate(path, replace(options, trust=ANYONE), options.threads or default_threads())
    ) as candidate:
        candidate.score(chunk)
        second = _time(lambda: compare(expected, candidate.score(chunk), chunk.scored_targets, start))
    return first, second


def _time(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
