"""A recovery adapter: what compression lost of the text that it made hardest, given back by a LoRA beside the file.

Examples are ranked by their perplexity under the compressed file, as llama.cpp runs it; the hardest are learnt, on the
file's own weights, frozen. What that gives is measured on pieces that nothing was learnt from, and held against a
larger type of the same bytes.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.edge.fidelity.scoring import ScoringOptions
from edgepack.errors import CalibrationError
from edgepack.files.names import hidden_path
from edgepack.files.output import move_output
from edgepack.pipeline.adapting.base import Base, Student, made_in, numbers_that_learn, opened_base
from edgepack.pipeline.adapting.examples import Renderer
from edgepack.pipeline.adapting.forecast import FORWARD, STEP, Shape, forecast
from edgepack.pipeline.adapting.larger import larger_type, make_larger, verdict
from edgepack.pipeline.adapting.measuring import difficulties, measure
from edgepack.pipeline.adapting.recovery import Recovered, Sources, advice
from edgepack.pipeline.adapting.scratch import training_scratch
from edgepack.pipeline.adapting.settings import ORIGINAL
from edgepack.pipeline.fidelity import open_reference
from edgepack.pipeline.makers.wire_scratch import run_digest
from edgepack.progress import silent
from edgepack.quant.calibration.text import load_tokenizer, sequence_length

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.pipeline.adapting.settings import Forecast, RecoverSettings
    from edgepack.progress import Progress
    from edgepack.quant.learning.loop import Learnt

_JUDGED_SHARE, _MOST_JUDGED = 0.05, 8
_MEASURED_SHARE = 0.2
_OPENING = 8  # tokens of an example whose perplexity tells more of the cut than of the file
_READ = 1 << 20  # characters of the text that a forecast counts the tokens of


def forecast_recovery(sources: Sources, settings: RecoverSettings) -> Forecast:
    """What a recovery would take; writes nothing. Raises as `recover_file` where it would be refused at once."""
    with opened_base(sources.file, "recover") as base:
        tokenizer = load_tokenizer(base.checkpoint.path)
        length = sequence_length(base.checkpoint, settings.length)
        with sources.text.open("rb") as stream:
            some = stream.read(_READ)
        count = len(tokenizer(some.decode("utf-8", "replace"), add_special_tokens=False, verbose=False)["input_ids"])
        blocks = max(1, round(count * sources.text.stat().st_size / max(1, len(some))) // length)
        measured = min(settings.measured, max(1, round(_MEASURED_SHARE * blocks)))
        hardest = _count(settings, blocks - measured)
        shape = Shape.of(base.checkpoint)
        learning = settings.learning(hardest, shape.width)
        learnt = learning.steps * learning.batch * length
        parts = {
            "examples": (blocks * length, FORWARD), "original": (hardest * length, FORWARD),
            "learning": (learnt, STEP), "measuring": (4 * measured * length, FORWARD),
        }  # fmt: skip
        lora = numbers_that_learn(base.checkpoint, settings)
        return forecast(shape, settings, parts, lora, hardest, learning.steps)


def _count(settings: RecoverSettings, examples: int) -> int:
    """How many are learnt."""
    wanted = round(settings.share * examples) if settings.hardest is None else settings.hardest
    return max(1, min(wanted, examples))


def recover_file(
    sources: Sources,
    output: Path,
    owner: Path,
    settings: RecoverSettings,
    progress: Progress = silent,
    note: Callable[[str], object] = lambda _line: None,
) -> Recovered:
    """Train, write and measure a recovery adapter.

    Args:
        sources: what is read.
        output: the adapter.
        owner: a claimed output, beside which scratch lies.
        settings: how.
        progress: told of each stretch of work.
        note: told what is done, a line at a time.

    Raises:
        CalibrationError: the text is too short for an example, one to judge by and one to measure on.
        UsageError: a projection that the model lacks; a JSONL that lacks a field, with its line.
        CheckFailedError: the original has another vocabulary.
        NumericError: a loss that is NaN; the text has the step, the last checkpoint is kept.
        EdgepackError: as `opened_base` and `run_export`.
    """
    began = time.monotonic()
    with opened_base(sources.file, "recover") as base:
        numbers_that_learn(base.checkpoint, settings)  # refuses what the model lacks before anything is done
        folder = hidden_path(owner, "recover")
        about = (*settings.about, *(_state(path) for path in sources.paths))
        with training_scratch(folder, owner, run_digest(about, base.checkpoint), resume=settings.resume):
            return _Recovery(sources, base, settings, folder, progress, note).run(output, began)


def _state(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path.resolve()), status.st_size if path.is_file() else 0, status.st_mtime_ns


class _Recovery:
    """One run."""

    def __init__(
        self, sources: Sources, base: Base, settings: RecoverSettings, folder: Path, progress: Progress,
        note: Callable[[str], object],
    ) -> None:  # fmt: skip
        from edgepack.quant.learning.text_blocks import text_pieces, write_blocks

        self.sources, self.base, self.settings, self.folder = sources, base, settings, folder
        self.progress, self.note = progress, note
        self.length = sequence_length(base.checkpoint, settings.length)
        tokenizer = load_tokenizer(base.checkpoint.path)
        blocks = write_blocks(text_pieces(sources.text), tokenizer, self.length, folder / "blocks")
        if len(blocks) < 3:
            raise CalibrationError(
                f"recover: expected text for at least 3 pieces of {self.length} tokens, to learn from, to judge by and"
                f" to measure on, got {len(blocks)}"
            )
        rest, measured = blocks.split(_MEASURED_SHARE, settings.measured)
        learnt, self.judged = rest.split(_JUDGED_SHARE, _MOST_JUDGED)
        self.measured = [np.array(blocks.tokens[row]) for row in measured.rows]
        self.pool: Any = learnt if sources.answers is None else self._answers(tokenizer, sources.answers)

    def _answers(self, tokenizer: Any, path: Path) -> Any:
        from edgepack.documents.pairs import read_pairs
        from edgepack.quant.learning.labelled import write_labelled

        renderer = Renderer(tokenizer, self.length)
        return write_labelled(
            (part for pair in read_pairs(path) for part in renderer.pair(pair)), self.folder / "answers-given"
        )

    def run(self, output: Path, began: float) -> Recovered:
        """All of it."""
        chosen = self._hardest()
        student, learnt = self._learn(chosen)
        about = {
            "kind": "recover", "targets": self._targets, "rank": self.settings.rank, "alpha": self.settings.scale,
            "examples": len(self.pool), "hardest": len(chosen), "steps": learnt.steps, "seed": self.settings.seed,
        }  # fmt: skip
        made = made_in(self.folder) / output.name  # under its own name only when all of it has been measured
        size = student.write(made, about, of_file=True)
        del student
        found = self._compared(made, size, learnt, len(chosen), began)
        move_output(made, output)
        return replace(found, output=output)

    @property
    def _targets(self) -> str:
        return "answers" if self.sources.answers is not None else self.settings.targets

    def _hardest(self) -> NDArray[np.int64]:
        """The examples that are learnt, hardest first."""
        with closing(self._scorer()) as scorer:
            found = difficulties(scorer, self.pool, self.folder, opening=_OPENING, progress=self.progress)
        count = _count(self.settings, len(self.pool))
        chosen = np.argsort(-found, kind="stable")[:count]
        self.note(
            f"recover: the hardest {count} of {len(self.pool)} examples: perplexity {np.exp(found[chosen].mean()):.4g},"
            f" of all {np.exp(found.mean()):.4g}"
        )
        return chosen.astype(np.int64)

    def _learn(self, chosen: NDArray[np.int64]) -> tuple[Student, Learnt]:
        from edgepack.quant.learning.loop import learn
        from edgepack.quant.learning.objectives import NextToken

        examples, judged, objective = self._examples(chosen)
        settings = self.settings.learning(len(chosen), self.base.width, keep_best=True)
        student = Student(self.base, self.settings)
        learnt = learn(
            student.model, examples, objective or NextToken(), settings, self.folder / "run", held_out=judged,
            resume=self.settings.resume, label="recovering", progress=self.progress, note=self.note,
        )  # fmt: skip
        return student, learnt

    def _examples(self, chosen: NDArray[np.int64]) -> tuple[Any, Any, Any]:
        """(to learn from, to judge by, what a batch costs)."""
        from torch.utils.data import Subset

        if self._targets != ORIGINAL:
            return Subset(self.pool, chosen.tolist()), self.judged, None
        from edgepack.export.backwards.checkpoint import opened_source
        from edgepack.quant.calibration.blocks import whole_model
        from edgepack.quant.learning.answers import Asked, answer_examples
        from edgepack.quant.learning.objectives import Distillation
        from edgepack.quant.learning.text_blocks import TokenBlocks

        asked = Asked(self.settings.top)
        rows = np.concatenate([self.pool.rows[chosen], self.judged.rows])
        blocks = TokenBlocks(self.pool.tokens, rows)
        with opened_source(self.sources.teacher or self.sources.reference) as original:
            teacher = whole_model(original, self.settings.device)
            answered = answer_examples(teacher, blocks, asked, self.folder / "said", self.progress)
        parts = np.split(np.arange(len(rows)), [len(chosen)])
        return answered.part(parts[0]), answered.part(parts[1]), Distillation(asked)

    def _scorer(self, file: Path | None = None, adapters: tuple[Path, ...] = ()) -> Any:
        from edgepack.edge.fidelity.scorers.gguf import GGUFScorer

        return GGUFScorer(file or self.base.path, self.length, threads=self.settings.threads, adapters=adapters)

    def _compared(self, output: Path, size: int, learnt: Learnt, chosen: int, began: float) -> Recovered:
        own = self.base.path.stat().st_size
        larger, why = larger_type(self.sources.reference, own, own + size)
        openers: list[tuple[int, Callable[[], Any]]] = [
            (own, self._scorer), (own + size, lambda: self._scorer(adapters=(output,))),
        ]  # fmt: skip
        if larger is not None:
            made = make_larger(self.sources.reference, larger, self.sources.imatrix, self.folder / "larger.gguf")
            openers.append((larger.bytes, lambda: self._scorer(made)))
        options = ScoringOptions(ctx=self.length, threads=self.settings.threads)
        with closing(open_reference(self.sources.reference, options)) as reference:
            before, after, *others = measure(reference, openers, self.measured, self.progress)
        other = others[0] if others else None
        judged = None if larger is None or other is None else verdict(before, after, other, larger)
        notes = [] if why == "" else [f"recover: not compared at equal bytes: {why}"]
        notes += advice(before, after, self.settings.rate) if learnt.steps else []
        return Recovered(
            output, size, time.monotonic() - began, learnt, (len(self.pool), chosen), before, after, other, judged,
            tuple(notes),
        )  # fmt: skip
