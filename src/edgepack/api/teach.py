"""`edgepack.teach`: an adapter that knows a folder of documents; the work is left to `pipeline.adapting`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.api.adapter_output import CARD, READ_OFTEN, adapter_target, made_json, planned_json
from edgepack.api.opening import ignore
from edgepack.api.places import check_there, local_path
from edgepack.api.values import optional_path
from edgepack.files.claim import claimed_output
from edgepack.files.folders import scratch_beside
from edgepack.files.output import move_output
from edgepack.gguf.reader import read_header
from edgepack.packaging.pack import pack_archive
from edgepack.pipeline.adapting.canon import Canon
from edgepack.pipeline.adapting.card import teaching_card
from edgepack.pipeline.adapting.lesson import Lesson, Taught, taught_json
from edgepack.pipeline.adapting.settings import TeachSettings
from edgepack.pipeline.adapting.teach import forecast_teaching, teach_file
from edgepack.progress import silent
from edgepack.quantities import size_in_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgepack.api.values import FilePath, JsonObject
    from edgepack.pipeline.adapting.settings import Forecast
    from edgepack.progress import Progress


@dataclass(frozen=True)
class TeachResult:
    """What teaching gave, or with a dry run would take.

    Attributes:
        output: the adapter, or the archive.
        taught: its figures; None of a dry run.
        forecast: time and memory; None of a run.
    """

    output: Path
    taught: Taught | None = None
    forecast: Forecast | None = None

    def json(self) -> JsonObject:
        """The object that `edgepack teach --json` prints."""
        if self.forecast is not None:
            return planned_json(self.output, self.forecast)
        assert self.taught is not None
        return made_json(self.output, taught_json(self.taught), self.taught.bytes)


def teach(
    model: FilePath,
    documents: FilePath,
    output: FilePath | None = None,
    *,
    pairs: FilePath | None = None,
    questions: FilePath | None = None,
    other: FilePath | None = None,
    target: str = "gguf-q8",
    rank: int = 16,
    alpha: float = 16.0,
    modules: Sequence[str] = (),
    rate: float | None = None,
    epochs: float = 3.0,
    steps: int | None = None,
    batch: int = 2,
    ctx: int = 512,
    ask: int = 100,
    replay: int = 64,
    pack: bool = False,
    max_memory: int | str | None = None,
    device: str = "cpu",
    seed: int = 0,
    threads: int = 0,
    resume: bool = False,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress = silent,
    note: Callable[[str], object] = ignore,
) -> TeachResult:
    """Train a LoRA on a folder of documents, with the proof of what the model knows then and what it forgot.

    Held-out questions are written before anything is learnt, beside the output as NAME.questions.jsonl; they are asked
    of the file without and with the adapter, as llama.cpp runs it.

    Args:
        model: a GGUF, or a Hugging Face folder, which is exported first.
        documents: a folder of Markdown, text, HTML and PDF files; links out of it are not followed.
        output: the adapter, by default MODEL-taught-lora.gguf beside the model; with `pack` the archive.
        pairs: a JSONL of questions and answers that are learnt too.
        questions: a JSONL of held-out questions of one's own, as `evaluate` reads them.
        other: a UTF-8 text of what the model must go on saying; by default what it writes itself.
        target: of the export of a folder; the GGUF lies beside the adapter, or in the archive.
        rank: of the adapter.
        alpha: the product is scaled by alpha over the rank.
        modules: ends of the names of projections, such as `q_proj`; all by default.
        rate: of AdamW; None for one by the model's width.
        epochs: how often each example is learnt from.
        steps: in place of epochs; 0 gives an adapter that changes nothing.
        batch: examples a step.
        ctx: tokens of an example at most.
        ask: held-out questions at most.
        replay: pieces of other text that are learnt beside the documents, so that they stay what they are.
        pack: write an archive of model, adapter, card and questions.
        max_memory: bytes, or a size such as `16GB`.
        device: a torch device.
        seed: of everything that is drawn.
        threads: of llama.cpp; 0 for every core.
        resume: go on with an interrupted run of the same.
        dry_run: say how long it would take and how much memory; write nothing.
        force: replace files that are there already; never an input.
        progress: told of each stretch of work.
        note: told what is done, a line at a time.

    Raises:
        UsageError: a folder without text, a JSONL that lacks a field (with its line), a projection that the model
            lacks, numbers out of range.
        CalibrationError: documents that nothing can be asked about, or too little other text.
        NumericError: a loss became NaN; the text has the step, the last checkpoint is kept.
        DependencyError: the extra `train` is not installed.
        EdgepackError: the model cannot be opened.
    """
    lesson = Lesson(
        local_path(model, READ_OFTEN),
        Canon(Path(documents), optional_path(pairs), optional_path(questions)), optional_path(other),
        target,
    )  # fmt: skip
    settings = TeachSettings(
        rank=rank, alpha=alpha, modules=tuple(modules), rate=rate, epochs=epochs, steps=steps, batch=batch, length=ctx,
        seed=seed, device=device, max_memory=size_in_bytes(max_memory), threads=threads, resume=resume, questions=ask,
        replay=replay,
    )  # fmt: skip
    check_there(*lesson.paths)
    if lesson.model.is_file():
        read_header(lesson.model)
    name = f"{_stem(lesson.model)}-taught-lora.gguf"
    wanted = adapter_target(output, lesson.model, name, pack=pack)
    if dry_run:
        return TeachResult(wanted, forecast=forecast_teaching(lesson, settings))
    asked = wanted.with_name(f"{wanted.stem}.questions.jsonl")
    with ExitStack() as stack:
        for path in (wanted, asked):
            stack.enter_context(claimed_output(path, inputs=lesson.paths, force=force))
        if pack:
            scratch = stack.enter_context(scratch_beside(wanted))
            end = _Packing(scratch, wanted, progress)
            taught = teach_file(lesson, scratch / name, asked, wanted, settings, progress, note, end)
            return TeachResult(wanted, taught)
        beside = wanted.with_name(f"{wanted.stem}-base.gguf")
        if lesson.model.is_dir():
            stack.enter_context(claimed_output(beside, inputs=lesson.paths, force=force))
        end_plain = _Keeping(lesson.model, beside)
        taught = teach_file(lesson, wanted, asked, wanted, settings, progress, note, end_plain)
    return TeachResult(wanted, replace(taught, base=beside) if lesson.model.is_dir() else taught)


@dataclass(frozen=True)
class _Packing:
    """Packs what was taught."""

    scratch: Path
    output: Path
    progress: Progress

    def __call__(self, taught: Taught) -> None:
        card = self.scratch / CARD
        card.write_text(teaching_card(taught, self.output.name), encoding="utf-8")
        members = (taught.adapter, card, taught.questions)
        pack_archive(taught.base, self.output, include=members, progress=self.progress)


@dataclass(frozen=True)
class _Keeping:
    """Keeps the file that a folder was exported to."""

    model: Path
    beside: Path

    def __call__(self, taught: Taught) -> None:
        if self.model.is_dir():
            move_output(taught.base, self.beside)


def _stem(model: Path) -> str:
    return model.stem if model.is_file() else model.resolve().name
