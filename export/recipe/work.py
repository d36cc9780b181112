"""A recipe under way: its passes on a checkpoint, one after the other, and what they leave for the plan of a file.

What targets share is `passes`' to say. Methods are left to `quant.passes`, planning and writing to `export`.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.export.recipe.calibration import calibration_tokens, short_text_note
from edgepack.export.recipe.pass_stages import following_key
from edgepack.export.recipe.records import importance_by_gguf_name, recipe_metadata
from edgepack.quant.passes.registry import find_pass
from edgepack.quant.passes.training import sequences_learnt

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.export.mapped import MappedModel
    from edgepack.export.plan import ExportPlan, Importance
    from edgepack.export.recipe.values import RecipeOptions
    from edgepack.gguf.types import GGMLType
    from edgepack.model import Checkpoint
    from edgepack.quant.calibration.collect import Calibration
    from edgepack.quant.calibration.statistics import LinearStatistics
    from edgepack.quant.passes.coded_rows import CodedRows
    from edgepack.quant.passes.recipe import PassStep, Recipe
    from edgepack.quant.passes.run import Figure, PassOutcome, PassRun
    from edgepack.quant.types.targets import Target


class Work:
    """A recipe under way. Does not modify the checkpoint.

    Args:
        checkpoint: the model.
        recipe: what is done to it.
        options: the user's.
    """

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, options: RecipeOptions) -> None:
        self.checkpoint, self.recipe, self.options = checkpoint, recipe, options
        self.target: Target | None = None
        self.unrounded = checkpoint  # as it was before a pass rounded it for the file
        given = options.tokens is not None and recipe.calibration.get("importance") is None
        self.with_importance = given or recipe.with_importance
        self.figures: list[Mapping[str, Figure]] = []
        self.notes: list[str] = []
        self.low_rank: dict[str, Any] = {}
        self.coded: CodedRows | None = None
        self.measured: Mapping[str, LinearStatistics] | None = None  # by the last pass, of what it left
        self._folder = options.folder
        self._key = "" if options.stages is None else options.stages.key
        self._kept: dict[str, NDArray[np.int64]] = {}  # shared with what goes on from here

    def for_target(self, target: Target) -> Work:
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
