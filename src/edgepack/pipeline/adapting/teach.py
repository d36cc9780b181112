"""A canon adapter: a folder of documents learnt by a LoRA beside the file, with the proof of what it knows and forgot.

Held-out questions are written before anything is learnt and asked of the file without and with the adapter, through
llama.cpp; what other text the model must go on saying is learnt beside the documents, and measured on other pieces.
"""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgepack.edge.fidelity.tasks.knowledge import Known, knowledge_test
from edgepack.errors import CalibrationError
from edgepack.files.folders import make_scratch
from edgepack.files.names import hidden_path
from edgepack.files.output import move_output
from edgepack.pipeline.adapting.base import (
    Base,
    Student,
    check_installed,
    made_in,
    numbers_that_learn,
    opened_base,
    opened_weights,
)
from edgepack.pipeline.adapting.canon import read_questions, write_questions
from edgepack.pipeline.adapting.examples import Renderer
from edgepack.pipeline.adapting.forecast import FORWARD, STEP, Shape, forecast
from edgepack.pipeline.adapting.lesson import Lesson, Taught, advice
from edgepack.pipeline.adapting.measuring import Measured, measure
from edgepack.pipeline.adapting.other_text import SAMPLE_LENGTH, OtherText
from edgepack.pipeline.adapting.scratch import training_scratch
from edgepack.pipeline.adapting.settings import LEAST_LENGTH
from edgepack.pipeline.export import run_export
from edgepack.pipeline.makers.wire_scratch import run_digest
from edgepack.pipeline.request import ExportRequest
from edgepack.progress import silent
from edgepack.quant.calibration.text import load_tokenizer, sequence_length

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.edge.fidelity.tasks.tasks import ChoiceItem, MatchItem
    from edgepack.pipeline.adapting.settings import Forecast, TeachSettings
    from edgepack.progress import Progress
    from edgepack.quant.learning.loop import Learnt

_TOP = 64  # most probable tokens of the model itself that are kept of replayed text


def forecast_teaching(lesson: Lesson, settings: TeachSettings) -> Forecast:
    """What teaching would take; writes nothing. Raises as `teach_file` where it would be refused at once."""
    check_installed("teach")
    lesson.canon.check()
    with opened_weights(lesson.model, "teach") as checkpoint:
        renderer = Renderer(load_tokenizer(checkpoint.path), sequence_length(checkpoint, settings.length))
        shape = Shape.of(checkpoint)
        lengths = [len(ids) for ids, _read in lesson.canon.examples(renderer)]
        examples = len(lengths) + settings.replay
        learning = settings.learning(examples, shape.width)
        replayed = settings.replay * SAMPLE_LENGTH
        tokens = sum(lengths) + replayed
        share = learning.steps * learning.batch / max(1, examples)
        parts = {
            "other text": (2 * replayed if lesson.other is None else replayed, FORWARD),
            "learning": (round(share * tokens), STEP),
            "asking": (2 * settings.questions * 200, FORWARD),
            "forgetting": (2 * settings.measured * SAMPLE_LENGTH, FORWARD),
        }  # fmt: skip
        lora = numbers_that_learn(checkpoint, settings)
        longest = max([SAMPLE_LENGTH if settings.replay else 0, *lengths])
        held = replace(settings, length=min(settings.length, max(LEAST_LENGTH, longest)))
        return forecast(shape, held, parts, lora, examples, learning.steps)


@contextmanager
def file_of(lesson: Lesson, owner: Path, progress: Progress = silent) -> Iterator[Path]:
    """The GGUF that the adapter is for: the one given, or the folder's, exported beside `owner` for as long.

    Raises:
        EdgepackError: as `run_export`.
    """
    if lesson.model.is_file() or not lesson.model.exists():
        yield lesson.model
        return
    folder = hidden_path(owner, "base")
    make_scratch(folder, owner)
    try:
        made = folder / f"{lesson.model.resolve().name}.gguf"
        yield run_export(ExportRequest(lesson.model, lesson.target, output=made, force=True, progress=progress)).output
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def teach_file(
    lesson: Lesson,
    output: Path,
    questions: Path,
    owner: Path,
    settings: TeachSettings,
    progress: Progress = silent,
    note: Callable[[str], object] = lambda _line: None,
    finish: Callable[[Taught], None] = lambda _taught: None,
) -> Taught:
    """Write questions, train and write a canon adapter, and measure what it knows and forgot.

    Args:
        lesson: what is taught to what.
        output: the adapter.
        questions: the held-out questions.
        owner: a claimed output, beside which scratch lies.
        settings: how.
        progress: told of each stretch of work.
        note: told what is done, a line at a time.
        finish: told the result while all files are there, those in scratch too.

    Raises:
        UsageError: a folder without text, a JSONL that lacks a field, with its line, a projection that the model lacks.
        CalibrationError: documents that nothing can be asked about, or too little other text.
        NumericError: a loss that is NaN; the text has the step, the last checkpoint is kept.
        EdgepackError: as `opened_base` and `run_export`.
    """
    began = time.monotonic()
    check_installed("teach")
    passed_over = lesson.canon.check()
    folder = hidden_path(owner, "teach")
    with ExitStack() as stack:
        path = stack.enter_context(file_of(lesson, owner, progress))
        base = stack.enter_context(opened_base(path, "teach"))
        numbers_that_learn(base.checkpoint, settings)  # refuses what the model lacks before anything is done
        about = (*settings.about, *_states(lesson))
        digest = run_digest(about, base.checkpoint)
        stack.enter_context(training_scratch(folder, owner, digest, resume=settings.resume))
        taught = _Teaching(lesson, base, settings, folder, progress, note).run(output, questions, passed_over, began)
        finish(taught)
        return taught


def _states(lesson: Lesson) -> list[tuple[object, ...]]:
    """What tells whether documents and texts are the same as in an interrupted run."""
    found: list[tuple[object, ...]] = [(lesson.target,)]
    for root in lesson.paths[1:]:
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file():
                status = path.stat()
                found.append((str(path), status.st_size, status.st_mtime_ns))
    return found


class _Teaching:
    """One run."""

    def __init__(
        self, lesson: Lesson, base: Base, settings: TeachSettings, folder: Path, progress: Progress,
        note: Callable[[str], object],
    ) -> None:  # fmt: skip
        self.lesson, self.base, self.settings, self.folder = lesson, base, settings, folder
        self.progress, self.note = progress, note
        self.length = sequence_length(base.checkpoint, settings.length)
        self._tokenizer = load_tokenizer(base.checkpoint.path)

    def run(self, output: Path, questions: Path, passed_over: tuple[str, ...], began: float) -> Taught:
        """All of it."""
        from edgepack.quant.learning.labelled import write_labelled

        written = made_in(self.folder) / questions.name
        self._write_questions(written)
        items = read_questions(written)
        renderer = Renderer(self._tokenizer, self.length)
        examples = write_labelled(self.lesson.canon.examples(renderer), self.folder / "examples")
        other = OtherText(
            self.lesson.other, self.base.checkpoint, self._tokenizer, self.length, self.settings, self.folder, self.note
        )
        replayed, measured = other.pieces()
        self.note(f"teach: {len(examples)} examples, {len(items)} held-out questions in {questions.name}")
        before = self._known(items)
        made = made_in(self.folder) / output.name  # under its own name only when all of it has been measured
        size, learnt = self._adapter(examples, replayed, made)
        after = self._known(items, (made,))
        other_text = self._forgotten(made, size, measured)
        move_output(written, questions)
        move_output(made, output)
        epochs = self.settings.epochs if self.settings.steps is None else None
        notes = [*(f"teach: {line}" for line in passed_over), *advice(after, other_text.perplexity_rise, epochs)]
        return Taught(
            self.base.path, output, size, questions, time.monotonic() - began, learnt, len(examples), before, after,
            other_text, tuple(notes),
        )  # fmt: skip

    def _adapter(self, examples: Any, replayed: NDArray[np.int64], path: Path) -> tuple[int, Learnt]:
        """Learn, and write the adapter: its bytes, and the loop's record."""
        student, learnt = self._learn(examples, replayed)
        about = {
            "kind": "teach", "rank": self.settings.rank, "alpha": self.settings.scale, "examples": len(examples),
            "steps": learnt.steps, "seed": self.settings.seed,
        }  # fmt: skip
        return student.write(path, about, of_file=False), learnt

    def _write_questions(self, questions: Path) -> None:
        given = self.lesson.canon.given()
        try:
            made = self.lesson.canon.ask(self.settings.questions, self.settings.seed)
        except CalibrationError:
            if not given:
                raise
            made = []
        write_questions(made, given, questions)

    def _scorer(self, adapters: tuple[Path, ...] = ()) -> Any:
        from edgepack.edge.fidelity.scorers.gguf import GGUFScorer

        ctx = max(512, self.length)
        return GGUFScorer(self.base.path, ctx, threads=self.settings.threads, adapters=adapters)

    def _known(self, items: Sequence[tuple[str, ChoiceItem | MatchItem]], adapters: tuple[Path, ...] = ()) -> Known:
        with closing(self._scorer(adapters)) as scorer:
            return knowledge_test(items, scorer, self.progress)

    def _learn(self, examples: Any, replayed: NDArray[np.int64]) -> tuple[Student, Learnt]:
        import torch

        from edgepack.quant.learning.answers import Asked, answer_examples
        from edgepack.quant.learning.loop import learn
        from edgepack.quant.learning.replay import MixedExamples, TextAndReplay
        from edgepack.quant.learning.text_blocks import TokenBlocks

        student, old = Student(self.base, self.settings), None
        if len(replayed):
            with torch.no_grad():  # the adapter adds nothing yet: the student says what the model says
                blocks = TokenBlocks(replayed)
                old = answer_examples(student.model, blocks, Asked(_TOP), self.folder / "said", self.progress)
        mixed = MixedExamples(examples, old)
        settings = self.settings.learning(len(mixed), self.base.width, judgements=0)
        learnt = learn(
            student.model, mixed, TextAndReplay(self.settings.replay_weight), settings, self.folder / "run",
            resume=self.settings.resume, label="teaching", progress=self.progress, note=self.note,
        )  # fmt: skip
        return student, learnt

    def _forgotten(self, output: Path, size: int, pieces: list[NDArray[Any]]) -> Measured:
        with closing(self._scorer()) as plain:
            total = self.base.path.stat().st_size + size
            return measure(plain, [(total, lambda: self._scorer((output,)))], pieces, self.progress)[0]
