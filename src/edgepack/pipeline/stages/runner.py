"""One stage after another: skipped where it is done already, measured, noted, held against the constraints.

What the stages of a recipe do is left to `work`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgepack.errors import CheckFailedError
from edgepack.file_digest import file_sha256
from edgepack.files.claim import check_output
from edgepack.pipeline.stages.constraints import Verdict, verdicts_on
from edgepack.pipeline.stages.records import StageResult, kept_result, read_record, write_record
from edgepack.quantities import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgepack.pipeline.stages.memory import PeakMemory
    from edgepack.pipeline.stages.metrics import Metrics
    from edgepack.pipeline.stages.records import Figures
    from edgepack.pipeline.stages.request import CompressRequest
    from edgepack.pipeline.stages.staged_recipe import StagedRecipe

    Work = Callable[[], tuple[Figures, list[Path]]]

STAGES_FOLDER = "stages"


@dataclass
class StageRunner:
    """Runs stages and keeps what is known of them.

    Attributes:
        recipe: the whole.
        request: what is asked for.
        metrics: where stages are counted, or None.
        log: told each line.
        memory: of the stage that is under way.
        stages: those that are done.
    """

    recipe: StagedRecipe
    request: CompressRequest
    metrics: Metrics | None
    log: Callable[[str], object]
    memory: PeakMemory
    stages: list[StageResult] = field(default_factory=list, init=False)
    _since: float = field(default=0.0, init=False)

    def say(self, line: str) -> None:
        """A line for people and for the log."""
        self.request.tell(line)
        self.log(line)

    def _run(self, name: str, key: str, work: Work) -> StageResult:
        """A stage: skipped, or done now."""
        kept = self._kept(name, key)
        return self._do(name, key, work) if kept is None else self._finish(kept)

    def _kept(self, name: str, key: str) -> StageResult | None:
        return kept_result(self._record(name), key, self.folder)

    def _do(
        self, name: str, key: str, work: Work, passes: Callable[[], tuple[StageResult, ...]] = tuple
    ) -> StageResult:
        self.say(f"{name}: begins")
        self._begin()
        figures, files = work()
        digests, seconds = {path.name: file_sha256(path) for path in files}, time.monotonic() - self._since
        result = StageResult(name, key, figures, seconds, self.memory.bytes, digests, passes())
        write_record(self._record(name), result)
        return self._finish(result)

    def _finish(self, result: StageResult) -> StageResult:
        """Tell of a stage and hold it against the constraints.

        Raises:
            CheckFailedError: one is missed.
        """
        verdicts = verdicts_on(result, self.recipe.constraints)
        self.stages.append(result)
        self.say(_line(result))
        for verdict in verdicts:
            self.log(f"{result.name}: {'met' if verdict.met else 'MISSED'} {verdict.name}: {verdict.text}")
        if self.metrics is not None:
            self.metrics.add(result, verdicts)
        missed = [verdict for verdict in verdicts if not verdict.met]
        if missed:
            raise CheckFailedError(f"after stage {result.name}: {_told(missed)}")
        return result

    def _begin(self) -> None:
        """Time and memory are counted from here."""
        self.memory.begin()
        self._since = time.monotonic()

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return self.request.output

    def _record(self, name: str) -> Path:
        return self.folder / STAGES_FOLDER / f"{name}.json"

    def _place(self, name: str) -> Path:
        """A file of the folder; one that no run of a recipe made is in the way."""
        path = self.folder / name
        records = (read_record(each) for each in (self.folder / STAGES_FOLDER).glob("*.json"))
        ours = self.request.force or any(name in record.files for record in records if record is not None)
        check_output(path, inputs=[self.request.model, self.request.recipe], force=ours)
        return path

    def _beside(self, path: Path) -> tuple[Path, ...]:
        """The adapters beside the exported GGUF."""
        record = read_record(self._record("export"))
        names = [] if record is None else [name for name in record.files if name.endswith("-lora.gguf")]
        return tuple(path.with_name(name) for name in names)


def _told(missed: list[Verdict]) -> str:
    return "; ".join(f"constraints.{verdict.name}: {verdict.text}" for verdict in missed)


def _line(result: StageResult) -> str:
    """A stage for people."""
    how = "skipped, its inputs are the same" if result.skipped else f"done in {format_duration(result.seconds)}"
    parts = [f"{result.name}: {how}"]
    if "bytes" in result.figures:
        parts.append(f"{format_size(result.figures['bytes'])}, ratio {result.figures['ratio']:.2f}")
    if "accuracy_drop" in result.figures:
        parts.append(f"accuracy drop {result.figures['accuracy_drop']:.4f}")
    return ", ".join([*parts, f"peak memory {format_size(result.peak_memory_bytes)}"])
