"""A recipe for one target after another: what no target changes runs once, and each file that results is planned.

One run of its passes is `work`'s, methods are `quant.passes`', writing is `export`'s.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.export.recipe.changed import ChangedModel
from edgepack.export.recipe.records import recipe_metadata
from edgepack.export.recipe.values import PreparedExport
from edgepack.export.recipe.work import Work

if TYPE_CHECKING:
    from edgepack.export.plan import ExportPlan
    from edgepack.export.recipe.values import RecipeOptions
    from edgepack.model import Checkpoint
    from edgepack.quant.calibration.collect import Calibration
    from edgepack.quant.passes.recipe import PassStep, Recipe
    from edgepack.quant.types.targets import Target


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
        self._work = Work(checkpoint, recipe, options)
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

    def _common_work(self) -> Work:
        if not self._begun:
            self._begun = True
            for step in self._common:
                self._work.run(step)
        return self._work

    def _calibrated(self, work: Work) -> Calibration | None:
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
