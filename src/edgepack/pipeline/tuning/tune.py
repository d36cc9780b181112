"""A quantised GGUF is tuned against the checkpoint that it was made of: checked, opened, tuned, written.

What is tuned and how is `quant.tuning`'s; opening, running and writing are `opened`'s, `run`'s and `written`'s.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import CalibrationError, DependencyError, UsageError
from edgepack.export.gguf_source import map_gguf
from edgepack.export.mapped_model import map_checkpoint
from edgepack.export.tuned_places import check_same_model
from edgepack.file_digest import file_sha256
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.gguf.variant import is_variant
from edgepack.pipeline.makers.wire_scratch import own_scratch, run_digest
from edgepack.pipeline.tuning.opened import OpenedFile
from edgepack.pipeline.tuning.run import TuningRun
from edgepack.pipeline.tuning.written import copy_file, tuning_metadata, write_tuned
from edgepack.progress import silent
from edgepack.quant.tuning.parts import DEFAULT_PARTS, REFINED_PARTS, ROWS, VECTORS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.gguf.reader import GGUFHeader
    from edgepack.model import Checkpoint
    from edgepack.progress import Progress
    from edgepack.quant.tuning.loop import Outcome
    from edgepack.quant.tuning.settings import TuningSettings

MOST_HELD_OUT = 8  # each is run at every look
_LEAST_SEQUENCES = 2
_GRIDS = frozenset({VECTORS, ROWS})  # what leaves integers of the wire on their trellis, and its grids uniform


@dataclass(frozen=True)
class Tuned:
    """What a tuning came to.

    Attributes:
        output: the file.
        bytes: its length.
        seconds: wall time.
        steps: that were run.
        planned: steps of the schedule, with which the same bytes come again.
        best_step: after which the tensors were as they are written; 0 where the tuning was dropped.
        tokens: of the text, what was held out included.
        before: held-out divergence of the file given, nats.
        after: of the file written.
        curve: (steps, held-out divergence) of every look.
        tuned: how many tensors had something to tune.
        left: type → how many tensors of it were left as they are.
        notes: a line for each thing that the user should know.
    """

    output: Path
    bytes: int
    seconds: float
    steps: int
    planned: int
    best_step: int
    tokens: int
    before: float
    after: float
    curve: tuple[tuple[int, float], ...]
    tuned: int
    left: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def dropped(self) -> bool:
        """Whether no state was better than the file given, which was then copied."""
        return self.best_step == 0


def default_parts(header: GGUFHeader) -> frozenset[str]:
    """What is moved where nobody says: what measured best for files that were refined, and for others."""
    return frozenset(REFINED_PARTS if keys.REFINE_BUDGET in header.metadata else DEFAULT_PARTS)


def tune_gguf(
    path: Path,
    checkpoint: Checkpoint,
    tokens: NDArray[np.int64],
    settings: TuningSettings,
    output: Path,
    progress: Progress = silent,
    *,
    teacher: Checkpoint | None = None,
    within: Path | None = None,
    pre: str | None = None,
    resume: bool = False,
    note: Callable[[str], object] = lambda _line: None,
) -> Tuned:
    """Tune what costs no bytes in a GGUF, and write it with the same types under another name.

    Args:
        path: the GGUF, in one file.
        checkpoint: what it was made of: its weights, as passes left them.
        tokens: int64 [sequences, length]; a part of them is held out.
        settings: how.
        output: a claimed output.
        progress: told of each stretch of work.
        teacher: the model whose logits are the goal, where that is another than `checkpoint`; of its tokens.
        within: a folder of a larger run for states and for the output; the file then says also of a tuning that was
            dropped how it was tuned, so that it has as many bytes. None keeps states beside the output.
        pre: the pre-tokenizer's name where its structure is not known.
        resume: go on with what an interrupted run of the same left there.
        note: told what is about to be done, a line at a time.

    Raises:
        CheckpointError: the file was not made of this checkpoint.
        UsageError: the file has nothing that can be tuned, or is one of several.
        CalibrationError: fewer than two sequences.
        NumericError: divergence became infinite or NaN; the state before is kept. Within a larger run this ends the
            tuning instead, with the best state until then.
        DependencyError: torch or transformers is not installed.
        EdgepackError: as `map_gguf` and `map_checkpoint`.
    """
    began = time.monotonic()
    header = _readable(path)
    settings = replace(_fitting(settings, header, note), ends_at_nan=within is not None)
    file, original = map_gguf(path, allow_requantize=True), map_checkpoint(checkpoint, pre=pre)
    check_same_model(original, file)
    check_device(settings.device)
    held_out, learnt = _split(len(tokens), settings)
    opened = OpenedFile(path, checkpoint, original, file, settings)
    note(opened.summary())
    folder = output.parent / f".edgepack-tuning-{output.name}" if within is None else within / "tuning"
    own_scratch(folder, output, _digest(opened, tokens, teacher), resume=resume)
    run = TuningRun(opened, tokens, held_out, learnt, folder, teacher or checkpoint)
    outcome, student = run.finish(progress, note)
    best = outcome.best
    if best.step == 0 and within is None:
        copy_file(path, output)
    else:
        tensors = student.tensors if best.step else {}
        write_tuned(path, header, tensors, tuning_metadata(header, outcome, settings, tokens), output)
    notes = _dropped(outcome, output)
    shutil.rmtree(folder, ignore_errors=True)
    return Tuned(
        output, output.stat().st_size, time.monotonic() - began, outcome.steps, outcome.planned, best.step,
        tokens.size,
        outcome.judged[0].held_out, best.held_out, tuple((each.step, each.held_out) for each in outcome.judged),
        len(student.tensors), opened.left(), notes,
    )  # fmt: skip


def _dropped(outcome: Outcome, output: Path) -> tuple[str, ...]:
    """A line that says so where the file is as it was."""
    ended = (f"tune: {outcome.ended}",) if outcome.ended else ()
    if outcome.best.step:
        return ended
    line = "no step was run" if outcome.steps == 0 else "no state was better on held-out text: the tuning is dropped"
    return (*ended, f"{line}: {output.name} is the file as it was")


def _readable(path: Path) -> GGUFHeader:
    header = read_header(path)
    if is_variant(header):
        raise UsageError(f"tune: expected a GGUF of ggml's types, got one of the variant: '{path}'")
    if header.get(keys.SPLIT_COUNT, 1) != 1:
        raise UsageError(f"tune: expected a GGUF in one file, got one of several: '{path}'")
    return header


def _fitting(settings: TuningSettings, header: GGUFHeader, note: Callable[[str], object]) -> TuningSettings:
    """The settings without what would change the bytes that an archive of the file takes."""
    if keys.WIRE_HOST not in header.metadata or settings.parts <= _GRIDS:
        return settings
    parts = settings.parts & _GRIDS or _GRIDS
    note(f"tune: a file of target wire: only {' and '.join(sorted(parts))} are moved, its integers cost bytes")
    return replace(settings, parts=parts)


def check_device(device: str) -> None:
    """Refuse a torch device that is not there with UsageError, and a missing torch with DependencyError."""
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise DependencyError(f"tune: needs {error.name}: pip install edgepack[compress]") from error
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"tune: device '{device}': {str(error).splitlines()[0]}") from error


def check_sequences(count: int) -> None:
    """Raise CalibrationError for too few sequences to learn from some and be judged by others."""
    if count < _LEAST_SEQUENCES:
        raise CalibrationError(
            f"tune: expected text for at least {_LEAST_SEQUENCES} sequences, one of them held out, got {count}"
        )


def _split(count: int, settings: TuningSettings) -> tuple[list[int], list[int]]:
    """Indices of sequences held out, spread evenly, and of the others."""
    check_sequences(count)
    wanted = min(MOST_HELD_OUT, max(1, round(settings.held_out * count)), count - 1)
    held_out = sorted({int(each) for each in np.linspace(0, count - 1, wanted + 2).round()[1:-1]} or {count // 2})
    return held_out, [index for index in range(count) if index not in held_out]


def _digest(opened: OpenedFile, tokens: NDArray[np.int64], teacher: Checkpoint | None) -> str:
    """Of all that a run's states depend on; the rates are left out: a run may go on at others."""
    settings = opened.settings
    about = (
        file_sha256(opened.path), "" if teacher is None else run_digest((), teacher), tokens, settings.steps,
        settings.minutes, sorted(settings.parts), settings.batch, settings.top, settings.held_out,
        settings.judgements, settings.seed, settings.rounds_inputs, settings.moves, settings.device,
    )  # fmt: skip
    return run_digest(about, opened.checkpoint)
