"""The stages of a recipe at work: each is skipped when it is done already, and held against the constraints after.

The work of a stage is that of the command of its name; how one is run is `stages.runner`'s, what is refused before
`stages.run`'s.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.edge.fidelity.gates import Gates
from edgepack.edge.fidelity.outcome import candidate_json
from edgepack.edge.fidelity.scoring import ScoringOptions
from edgepack.errors import CheckFailedError
from edgepack.export.recipe.pass_stages import FinishedPass, PassStages, following_key
from edgepack.files.claim import claimed_output
from edgepack.files.output import atomic_output
from edgepack.packaging.derivation import MEMBER, beside_path
from edgepack.packaging.trust.policy import ANYONE
from edgepack.pipeline.export import run_export
from edgepack.pipeline.stages.contradictions import least_bytes
from edgepack.pipeline.stages.keys import export_key, first_key, packs_inside, scoring_key
from edgepack.pipeline.stages.records import StageResult, read_record, write_record
from edgepack.pipeline.stages.request import Compressed, CompressRequest
from edgepack.pipeline.stages.runner import STAGES_FOLDER, StageRunner
from edgepack.pipeline.stages.scoring import StageScorer, accuracy_figures
from edgepack.quantities import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.edge.fidelity.run import FidelityRun
    from edgepack.pipeline.export_result import ExportResult
    from edgepack.pipeline.request import ExportRequest
    from edgepack.pipeline.stages.memory import PeakMemory
    from edgepack.pipeline.stages.metrics import Metrics
    from edgepack.pipeline.stages.records import Figures
    from edgepack.pipeline.stages.staged_recipe import StagedRecipe

    Work = Callable[[], tuple[Figures, list[Path]]]

SUMMARY, VALIDATION = "recipe.json", "validation.json"


class Run(StageRunner):
    """One run of a recipe.

    Args:
        recipe: the whole.
        request: what is asked for.
        export: the recipe's export, without its passes.
        plan: what the export will make.
        metrics: where stages are counted, or None.
        log: told each line.
        memory: of the stage that is under way.
    """

    def __init__(
        self, recipe: StagedRecipe, request: CompressRequest, export: ExportRequest, plan: ExportResult,
        metrics: Metrics | None, log: Callable[[str], object], memory: PeakMemory,
    ) -> None:  # fmt: skip
        super().__init__(recipe, request, metrics, log, memory)
        self.plan = plan
        self.passes: list[StageResult] = []
        self.scored: FidelityRun | None = None  # what the export made, where this run has scored it
        self.export, self.key = self._prepared(export)
        whole = 4 * sum(prod(row.shape) for row in plan.outline.tensors)
        self.scorer = StageScorer(self.export, recipe.scoring, recipe.constraints.max_memory, whole)

    def all_stages(self, started: float) -> Compressed:
        """Every stage in order; `started` is the clock at the beginning."""
        request = self.request
        self.say(f"began: {request.recipe} on {request.model}, recipe {self.recipe.sha256}")
        shipped, key = self._exported()
        for stage in (self._packed, self._validated, self._certified):
            shipped, key = stage(shipped, key)
        seconds = time.monotonic() - started
        size = shipped.stat().st_size
        done = Compressed(shipped, size, self.plan.outline.source_bytes, tuple(self.stages), seconds)
        self._sum_up(done)
        return done

    def _exported(self) -> tuple[Path, str]:
        """Passes and the file: one piece of work, in which every pass is a stage of its own."""
        measures = scoring_key(self.recipe) if self._measures else None
        key = export_key(self.key, self.recipe, self.export, measures)
        inside = packs_inside(self.recipe, self.export)
        path = self._place(f"{Path(self.plan.output.name).stem}{'.edgepack' if inside else '.gguf'}")
        kept = self._kept("export", key)
        if kept is not None:
            for each in kept.passes:
                self._finish(replace(each, skipped=True))
            self._finish(kept)
            return path, key

        def work() -> tuple[Figures, list[Path]]:
            """The model's files, how many bytes they take and, where this recipe measures, how they score."""
            result = run_export(replace(self.export, output=path, pack=inside, provenance=not inside))
            if not result.passed:
                raise CheckFailedError(f"export: {_failed(result)}")
            figures = self._size_figures(result.bytes, final=self.recipe.pack is None or inside)
            if self._measures:
                self.scored = self.scorer.score(path, result.adapters)
                figures |= accuracy_figures(self.scored)
            made = [*result.made.files, *result.beside] if result.made is not None and not inside else [path]
            return figures, made if inside else [*made, beside_path(path)]

        self._do("export", key, work, passes=lambda: tuple(self.passes))
        return path, key

    def _packed(self, path: Path, key: str) -> tuple[Path, str]:
        if self.recipe.pack is None or path.suffix == ".edgepack":
            return path, key
        from edgepack.packaging.pack import pack_archive

        level, archive = self.recipe.pack["level"], self._place(f"{path.stem}.edgepack")
        key = following_key(key, "pack", level)

        def work() -> tuple[Figures, list[Path]]:
            """The archive of the file, what lies beside it and how it was made."""
            with claimed_output(archive, force=True), ExitStack() as scratch:
                origin = self.folder / MEMBER
                scratch.callback(origin.unlink, missing_ok=True)
                shutil.copyfile(beside_path(path), origin)
                pack_archive(
                    path, archive, level=level, include=(*self._beside(path), origin), threads=self.request.threads,
                    progress=self.request.progress,
                )  # fmt: skip
            return self._size_figures(archive.stat().st_size, final=True), [archive]

        self._run("pack", key, work)
        return archive, key

    def _validated(self, path: Path, key: str) -> tuple[Path, str]:
        settings = self.recipe.validate
        if settings is None:
            return path, key
        gates = Gates(settings["min_agreement"], settings["max_kl"] or None, settings["max_perplexity_ratio"] or None)
        own, report = following_key(key, "validate", scoring_key(self.recipe), gates), self._place(VALIDATION)

        def work() -> tuple[Figures, list[Path]]:
            """The file held against its original, as a report; which gates it missed is among the figures."""
            adapters = () if path.suffix == ".edgepack" else self._beside(path)
            run = self.scored if self.scored is not None else self.scorer.score(path, adapters)
            told = candidate_json(run.candidates[0], gates, run.chunking)
            with atomic_output(report) as stream:
                stream.write(json.dumps(told, indent=1).encode())
            failed = [result.detail for result in run.candidates[0].gate_results(gates) if not result.passed]
            return {**accuracy_figures(run), "passed": not failed, "missed": "; ".join(failed)}, [report]

        result = self._run("validate", own, work)
        if not result.figures["passed"]:
            raise CheckFailedError(f"validate: {result.figures['missed']}")
        return path, key

    def _certified(self, path: Path, key: str) -> tuple[Path, str]:
        settings = self.recipe.certify
        if settings is None:
            return path, key
        from edgepack.pipeline.certify import certify

        output = self._place(f"{path.stem}-certified{path.suffix}")
        key = following_key(key, "certify", scoring_key(self.recipe), settings["stored_tokens"])
        text, scoring = self.recipe.scoring["text"], self.recipe.scoring
        options = ScoringOptions(
            ctx=scoring["ctx"], max_chunks=scoring["chunks"], threads=self.request.threads or 0, floor=True,
            trust=ANYONE,
        )  # fmt: skip

        def work() -> tuple[Figures, list[Path]]:
            """A copy of the file with its certificate."""
            with claimed_output(output, force=True):
                found = certify(
                    path, self.request.model, None if text is None else Path(text), output, options,
                    settings["stored_tokens"], self.request.progress,
                )  # fmt: skip
            return {**self._size_figures(found.bytes, final=True), "stored_tokens": found.tokens}, [output]

        self._run("certify", key, work)
        return output, key

    def _began_pass(self, number: int, name: str) -> None:
        self.say(f"pass-{number}-{name}: begins")
        self._begin()

    def _finished_pass(self, done: FinishedPass) -> None:
        """A pass is a stage: it is measured where a constraint asks for that, once for the same inputs."""
        name = f"pass-{done.number}-{done.step.name}"
        measured = scoring_key(self.recipe) if self._measures and not done.outcome.low_rank else None
        key, record = following_key(done.key, measured), done.folder / "stage.json"
        kept = read_record(record) if done.skipped else None  # else one with another measurement
        if kept is None or kept.key != key:
            figures = {key: value for key, value in done.outcome.figures.items() if isinstance(value, (int, float))}
            if measured is not None:
                figures |= accuracy_figures(self.scorer.score_checkpoint(done.outcome.checkpoint, done.folder))
            kept = StageResult(name, key, figures, done.seconds, self.memory.bytes, skipped=done.skipped)
            write_record(record, replace(kept, skipped=False))
        self.passes.append(replace(kept, skipped=False))
        self._finish(kept)
        self._begin()

    def _prepared(self, given: ExportRequest) -> tuple[ExportRequest, str]:
        """The export with its passes in a file of their own, which stays in the folder; and the key of the first."""
        export = replace(given, force=True, resume=True)
        if self.recipe.passes is None:
            return export, first_key(self.recipe, export)
        own = self.folder / STAGES_FOLDER / "passes.toml"
        with atomic_output(own) as stream:
            stream.write(self.recipe.passes_text.encode())
        export = replace(export, recipe=own)
        key = first_key(self.recipe, export)
        stages = PassStages(self.folder / STAGES_FOLDER, key, self._began_pass, self._finished_pass)
        return replace(export, stages=stages), key

    @property
    def _measures(self) -> bool:
        return self.recipe.constraints.max_accuracy_drop is not None

    def _size_figures(self, size: int, *, final: bool) -> Figures:
        """Bytes of a stage's file, and what the one that is shipped has at least."""
        source = self.plan.outline.source_bytes
        least = size if final else least_bytes(self.recipe, self.export, self.plan)
        figures: Figures = {"bytes": size, "ratio": source / size}
        return {**figures, "least_bytes": least, "greatest_ratio": source / least} if least else figures

    def _sum_up(self, done: Compressed) -> None:
        summary: dict[str, Any] = {
            "output": done.output.name, "bytes": done.bytes, "source_bytes": done.source_bytes, "ratio": done.ratio,
            "recipe_sha256": self.recipe.sha256, "constraints": self.recipe.constraints.given,
            "stages": [stage.as_json() for stage in done.stages],
        }  # fmt: skip
        with atomic_output(self.folder / SUMMARY) as stream:
            stream.write(json.dumps(summary, indent=1).encode())
        if self.metrics is not None:
            self.metrics.succeeded()
        self.say(f"done: {done.output}: {format_size(done.bytes)}, ratio {done.ratio:.2f},"
                 f" in {format_duration(done.seconds)}")  # fmt: skip


def _failed(result: ExportResult) -> str:
    assert result.validation is not None
    found = result.validation.candidates[0].gate_results(result.gates)
    return "; ".join(each.detail for each in found if not each.passed)
