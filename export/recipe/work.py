"""Runs a recipe: its passes on a checkpoint, for one target after another, and the plan of each file that results.

What no target changes runs once. Methods are left to `quant.passes`, planning and writing to `export`.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import UsageError
from edgepack.export.recipe.calibration import calibration_tokens, short_text_note
from edgepack.export.recipe.changed import ChangedModel
from edgepack.export.recipe.pass_stages import following_key
from edgepack.export.recipe.records import importance_by_gguf_name, recipe_metadata
from edgepack.progress import silent
from edgepack.quant.passes.registry import find_pass
from edgepack.quant.passes.training import sequences_learnt

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.crew import Crew
    from edgepack.export.mapped import MappedModel
    from edgepack.export.plan import ExportPlan, Importance
    from edgepack.export.recipe.pass_stages import PassStages
    from edgepack.gguf.types import GGMLType
    from edgepack.model import Checkpoint
    from edgepack.progress import Progress
    from edgepack.quant.calibration.collect import Calibration
    from edgepack.quant.calibration.statistics import LinearStatistics
    from edgepack.quant.passes.coded_rows import CodedRows
    from edgepack.quant.passes.recipe import PassStep, Recipe
    from edgepack.quant.passes.run import Figure, PassOutcome, PassRun
    from edgepack.quant.types.choice import Overrides
    from edgepack.quant.types.targets import Target


@dataclass(frozen=True)
class RecipeOptions:
    """What the user decides beside recipe and target.

    Attributes:
        folder: scratch space; it must live until the plan is written.
        overrides: types chosen by hand; None for none.
        pre: the pre-tokenizer's name where its structure is not known.
        device: a torch device for the passes.
        batch: calibration sequences at a time.
        tokens: calibration tokens [sequences, length] that are known already, in place of the recipe's.
        resumable: whether the folder stays after a kill: then what is done is kept in it.
        factors: where low-rank factors are stored, or read from; None for neither.
        save_calibration: a `.safetensors` file for the statistics, which makes calibration resumable; or None.
        stages: where finished passes are kept for another run; None where they are not.
        progress: told of each block done.
        crew: who runs what can be split; None for this process.
    """

    folder: Path
    overrides: Overrides | None = None
    pre: str | None = None
    device: str = "cpu"
    batch: int = 8
    tokens: NDArray[np.int64] | None = None
    resumable: bool = False
    factors: Path | None = None
    save_calibration: Path | None = None
    stages: PassStages | None = None
    progress: Progress = silent
    crew: Crew | None = None


@dataclass(frozen=True)
class PreparedExport:
    """What a recipe gives: a plan to write, and what happened.

    Attributes:
        plan: of the file; its metadata tells the recipe and the figures.
        reference: the changed model under GGUF names before any pass rounded it for the file; what corrections are
            measured against.
        checkpoint: the changed model.
        calibration: statistics of the changed model, or None where nothing needed them.
        figures: for each pass, by its number: name and figures.
        notes: a line each on what was skipped and why.
        low_rank: checkpoint name → (left, right) to be added at run time by an adapter.
        corrections: the recipe's steps that correct the finished file.
    """

    plan: ExportPlan
    reference: MappedModel
    checkpoint: Checkpoint
    calibration: Calibration | None
    figures: tuple[Mapping[str, Figure], ...]
    notes: tuple[str, ...]
    low_rank: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=dict)
    corrections: tuple[PassStep, ...] = ()


class Passes:
    """A recipe on a checkpoint, for as many targets as are asked for. Does not modify the checkpoint.

    Args:
        checkpoint: the model.
        recipe: what is done to it.
        options: the user's; its folder must live until every plan is written or forgotten.
    """

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, options: RecipeOptions) -> None:
        self.recipe, self.options = recipe, options
        steps = [step for step in recipe.passes if not step.is_correction]
        first = next((n for n, step in enumerate(steps) if step.depends_on_target), len(steps))
        self._common, self._own = steps[:first], steps[first:]
        self._work = _Work(checkpoint, recipe, options)
        self._begun = False
        self._calibration: Calibration | None = None

    @property
    def corrections(self) -> tuple[PassStep, ...]:
        """The recipe's steps that correct the finished file."""
        return tuple(step for step in self.recipe.passes if step.is_correction)

    def outline(self, target: Target) -> ExportPlan:
        """The plan for `target` before the passes that depend on it: types and bytes of every tensor are final."""
        return self._common_work().for_target(target).outline()

    def changed(self) -> ChangedModel:
        """The model after the recipe, for files whose types are none of ggml's.

        Raises:
            UsageError: a pass that is made for ggml's types or leaves an adapter.
            EdgepackError: whatever a pass finds wrong.
        """
        unfit = next((step.name for step in self.recipe.passes if step.is_correction or step.depends_on_target), None)
        if unfit is not None:
            raise UsageError(f"pass '{unfit}' rounds for or corrects ggml's types: expected a gguf target")
        work = self._common_work()
        if work.low_rank:
            raise UsageError('pass \'lowrank\' with output = "adapter": expected a gguf target, or output = "merged"')
        return ChangedModel(work.checkpoint, recipe_metadata(self.recipe, work.figures), tuple(work.notes))

    def changed_for(self, target: Target) -> ChangedModel:
        """The model after the recipe, its passes that ask for a target run for `target`; nothing may round it.

        Raises:
            UsageError: a pass that rounds for the file, corrects it or leaves an adapter.
            EdgepackError: whatever a pass finds wrong.
        """
        work = self._common_work().for_target(target)
        for step in self._own:
            work.run(step)
        if work.coded is not None or work.low_rank or self.corrections:
            raise UsageError("passes: expected none that rounds for the file, corrects it or leaves an adapter")
        return ChangedModel(work.checkpoint, recipe_metadata(self.recipe, work.figures), tuple(work.notes))

    def prepare(self, target: Target) -> PreparedExport:
        """Run what is left of the recipe for `target` and plan the file.

        Raises:
            EdgepackError: whatever a pass, the mapping or the plan finds wrong.
        """
        from edgepack.export.mapped_model import map_checkpoint

        work = self._common_work().for_target(target)
        for step in self._own:
            work.run(step)
        calibration = self._calibrated(work)
        plan = work.plan(calibration)
        reference = map_checkpoint(work.unrounded, pre=self.options.pre)
        notes = (*work.notes, *work.last_notes())
        return PreparedExport(
            plan, reference, work.checkpoint, calibration, tuple(work.figures), notes, work.low_rank, self.corrections
        )

    def forget(self, target: Target) -> None:
        """Remove what the passes of `target` keep on disk; nothing that was prepared for it may be read any more."""
        shutil.rmtree(self.options.folder / target.name, ignore_errors=True)

    def _common_work(self) -> _Work:
        if not self._begun:
            self._begun = True
            for step in self._common:
                self._work.run(step)
        return self._work

    def _calibrated(self, work: _Work) -> Calibration | None:
        """Statistics of the changed model where something needs them; taken once where all targets share it."""
        from edgepack.quant.calibration.collect import Calibration

        if not (work.with_importance or self.corrections):
            return None
        if work.measured is not None and not self.corrections and self.options.save_calibration is None:
            return Calibration(work.measured)
        if self._own:
            return work.calibrate()
        self._calibration = self._calibration or work.calibrate()
        return self._calibration


def prepare_export(checkpoint: Checkpoint, recipe: Recipe, target: Target, options: RecipeOptions) -> PreparedExport:
    """Run the recipe's passes for one target and plan the file. Does not modify `checkpoint`.

    Raises:
        EdgepackError: whatever a pass, the mapping or the plan finds wrong.
    """
    return Passes(checkpoint, recipe, options).prepare(target)


class _Work:
    """A recipe under way."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, options: RecipeOptions) -> None:
        self.checkpoint, self.recipe, self.options = checkpoint, recipe, options
        self.target: Target | None = None
        self.unrounded = checkpoint  # as it was before a pass rounded it for the file
        self.with_importance = bool(recipe.calibration.get("importance"))
        self.figures: list[Mapping[str, Figure]] = []
        self.notes: list[str] = []
        self.low_rank: dict[str, Any] = {}
        self.coded: CodedRows | None = None
        self.measured: Mapping[str, LinearStatistics] | None = None  # by the last pass, of what it left
        self._folder = options.folder
        self._key = "" if options.stages is None else options.stages.key
        self._kept: dict[str, NDArray[np.int64]] = {}  # shared with what goes on from here

    def for_target(self, target: Target) -> _Work:
        """The work as it is now, to go on with for `target`; this one stays."""
        work = copy.copy(self)
        work.target, work._folder = target, self.options.folder / target.name  # noqa: SLF001 - a copy of its own
        work.figures, work.notes, work.low_rank = list(self.figures), list(self.notes), dict(self.low_rank)
        overrides = self.options.overrides or None
        work._key = following_key(self._key, target.name, overrides, self.options.pre)  # noqa: SLF001 - likewise
        return work

    def tokens(self, learnt: int = 0) -> NDArray[np.int64]:
        """Calibration tokens: those given, of the recipe's text, or sampled from the model; more for `learnt`."""
        if self.options.tokens is not None:
            return self.options.tokens
        name = "tokens" if learnt <= self.recipe.calibration["sequences"] else f"tokens-{learnt}"
        if name not in self._kept:
            self._kept[name] = self._sampled(name, learnt) if self.options.resumable else self._chosen(learnt)
        return self._kept[name]

    def _chosen(self, learnt: int) -> NDArray[np.int64]:
        return calibration_tokens(self.checkpoint, self.recipe, self.options.device, learnt)

    def _sampled(self, name: str, learnt: int) -> NDArray[np.int64]:
        """The tokens that an interrupted run chose, or new ones, kept: a model's own samples take long."""
        stages = self.options.stages
        path = self.options.folder / f"{name}.npy" if stages is None else stages.tokens_file(name, self._key)
        if not path.is_file():
            partial = path.with_name(f"partial-{name}.npy")
            np.save(partial, self._chosen(learnt))
            partial.replace(path)
        found: NDArray[np.int64] = np.load(path)
        return found

    def run(self, step: PassStep) -> None:
        """One pass, and what it leaves."""
        outcome = self._staged(step) if self.options.stages else self._done(step, self._folder)
        self.checkpoint = outcome.checkpoint
        if outcome.coded is None:
            self.unrounded = outcome.checkpoint
        self.figures.append({"name": step.name, **step.given, **outcome.figures})
        self.notes += outcome.notes
        self.low_rank |= outcome.low_rank
        self.coded = outcome.coded or self.coded
        self.measured = outcome.measured

    def _done(self, step: PassStep, folder: Path) -> PassOutcome:
        """What a pass gives that is done now."""
        scratch = folder / f"pass-{len(self.figures)}"
        return find_pass(step.name).run(self.checkpoint, step.settings, self.pass_run(step, scratch))

    def _staged(self, step: PassStep) -> PassOutcome:
        """What a pass gives, or gave an earlier run with the same inputs."""
        stages = self.options.stages
        assert stages is not None
        if step.needs_tokens:  # a later pass has those that this one asked for, whether it is done now or was before
            self.tokens(sequences_learnt(step.settings))
        key = following_key(self._key, step.name, sorted(step.given.items()))
        outcome = stages.run(len(self.figures), step, key, self.checkpoint, lambda scratch: self._done(step, scratch))
        self._key = key
        return outcome

    def pass_run(self, step: PassStep, scratch: Path) -> PassRun:
        """What a pass is given now, with a folder of its own."""
        from edgepack.quant.passes.run import PassRun

        return PassRun(
            folder=scratch,
            tokens=self.tokens(sequences_learnt(step.settings)) if step.needs_tokens else None,
            target_types=self._target_types() if self.target else {},
            with_importance=self.with_importance,
            device=self.options.device,
            batch=self.options.batch,
            resumable=self.options.resumable,
            factors=self.options.factors,
            progress=self.options.progress,
            crew=self.options.crew,
        )

    def _target_types(self) -> dict[str, GGMLType]:
        """Checkpoint name of every tensor → the type of the GGUF tensor that it goes into."""
        from edgepack.export.mapped_model import map_checkpoint
        from edgepack.gguf.types import GGMLType
        from edgepack.quant.types.choice import Candidate, Overrides, choose_types

        assert self.target is not None
        mapped = map_checkpoint(self.checkpoint, pre=self.options.pre)
        candidates = [Candidate(name, rows.shape, GGMLType.F32) for name, rows in mapped.tensors.items()]
        overrides = self.options.overrides or Overrides()
        types = choose_types(candidates, self.target, mapped.facts, overrides, has_importance=self.with_importance)
        return {source: types[name] for name, rows in mapped.tensors.items() for source in rows.origin.names}

    def last_notes(self) -> list[str]:
        """A line where the text was short, and one for each type of the file that cannot hold a pruning's zeros."""
        from edgepack.quant.passes.prune.weights import lost_zeros

        tokens = self._kept.get("tokens")
        short = [] if tokens is None else short_text_note(tokens, self.recipe)
        pruned = any(step.leaves_zeros for step in self.recipe.passes)
        return short + (lost_zeros(self._target_types().values()) if pruned else [])

    def calibrate(self) -> Calibration:
        """Statistics of the model as the passes left it."""
        from edgepack.quant.calibration.collect import collect

        full = any(step.is_correction and step.settings["covariance"] == "full" for step in self.recipe.passes)
        return collect(
            self.checkpoint, self.tokens(), with_hessian=full, device=self.options.device, batch=self.options.batch,
            save_to=self.options.save_calibration or self._kept_statistics(), progress=self.options.progress,
            crew=self.options.crew,
        )  # fmt: skip

    def _kept_statistics(self) -> Path | None:
        """Where an interrupted calibration keeps its finished blocks."""
        if not self.options.resumable:
            return None
        stages = self.options.stages
        folder = self._folder if stages is None else stages.calibration_folder(self._key)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / "statistics.safetensors"

    def outline(self) -> ExportPlan:
        """The plan as it would be if every input were equally important: types do not depend on the figures."""
        from edgepack.export.mapped_model import map_checkpoint

        mapped = map_checkpoint(self.checkpoint, pre=self.options.pre)
        ones = {n: np.ones(rows.shape[-1], np.float32) for n, rows in mapped.tensors.items() if len(rows.shape) == 2}
        return self._planned(mapped, ones if self.with_importance else None)

    def plan(self, calibration: Calibration | None) -> ExportPlan:
        """The plan of the file, with the recipe and all figures in its metadata."""
        from edgepack.export.mapped_model import map_checkpoint

        mapped = map_checkpoint(self.checkpoint, pre=self.options.pre)
        importance = None
        if calibration is not None and self.with_importance:
            importance = importance_by_gguf_name(calibration, mapped)
        return self._planned(mapped, importance)

    def _planned(self, mapped: MappedModel, importance: Importance | None) -> ExportPlan:
        from edgepack.export.decided_rows import with_coded_rows
        from edgepack.export.plan import PlanOptions, plan_export
        from edgepack.quant.types.choice import Overrides

        assert self.target is not None
        plan = plan_export(mapped, self.target, PlanOptions(self.options.overrides or Overrides(), importance))
        plan = replace(plan, metadata={**plan.metadata, **recipe_metadata(self.recipe, self.figures)})
        return plan if self.coded is None else with_coded_rows(plan, self.coded)
