"""Prunes while the model learns: sparsity rises along a cubic schedule, masks are made anew, pruned weights stay zero.

Source: Zhu and Gupta, "To prune, or not to prune" (arXiv 1710.01878). Which weights go is left to `weights`, one call
for each new mask; what is learnt and how, to `quant.learning`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from edgepack.progress import silent
from edgepack.quant.calibration.blocks import BlockwiseModel, is_linear
from edgepack.quant.calibration.text import evenly_spread
from edgepack.quant.learning.layers import blocks_of
from edgepack.quant.learning.lessons import learning_figures, open_lesson, recovery_objective
from edgepack.quant.learning.loop import learn
from edgepack.quant.learning.models import kept_checkpoint, live_checkpoint, parameter_names, trainable_model
from edgepack.quant.passes.prune.weights import prune_weights
from edgepack.quant.passes.run import PassOutcome

if TYPE_CHECKING:
    from edgepack.model import Checkpoint
    from edgepack.quant.learning.settings import LearningSettings
    from edgepack.quant.passes.prune.weights import PruneSettings
    from edgepack.quant.passes.run import Figure, PassRun

_CRITERION_SEQUENCES = 64  # that a mask looks at, of all that are learnt from


@dataclass(frozen=True)
class Rise:
    """How sparsity rises.

    Attributes:
        every: steps between two masks.
        steps: after which the last mask is made: the model learns with that one for the rest of the run.
    """

    every: int
    steps: int

    @property
    def moments(self) -> list[int]:
        """Before which steps, counted from 0, a mask is made."""
        return [*range(self.every, self.steps, self.every), self.steps]

    def share(self, step: int) -> float:
        """Of the final sparsity that is reached by the mask before `step`: 1 - (1 - t/T)³."""
        return 1 - (1 - min(step / self.steps, 1.0)) ** 3 if self.steps else 1.0


def prune_gradually(
    checkpoint: Checkpoint, settings: PruneSettings, rise: Rise, recover: str, learning: LearningSettings, run: PassRun
) -> PassOutcome:
    """Prune over a run of learning from the model's dense self. Does not modify `checkpoint`.

    Args:
        checkpoint: the dense model.
        settings: of the last mask.
        rise: how it is come to.
        recover: what is learnt, as `recovery_objective` has it.
        learning: how; with 0 steps the outcome is the checkpoint.
        run: with tokens.

    Raises:
        EdgepackError: as `learn` and `prune_weights`.
    """
    if not learning.steps:
        return PassOutcome(checkpoint, {"steps_run": 0}, ("prune: 0 steps leave the model as it is",))
    notes: list[str] = []
    count = BlockwiseModel(checkpoint).block_count
    lesson = open_lesson(checkpoint, run, learning, recovery_objective(recover, count), "prune")
    student = trainable_model(checkpoint, learning.device)  # after its teacher, which is let go of
    masks = Masks(checkpoint, student, settings, rise, run)
    learnt = learn(
        student, lesson.examples, lesson.objective, learning, run.folder / "prune" / "learning",
        held_out=lesson.held_out, callbacks=[masks], resume=run.resumable, label="Pruning and learning",
        progress=run.progress, note=notes.append,
    )  # fmt: skip
    figures: dict[str, Figure] = {**masks.figures(), **learning_figures(learnt, lesson)}
    return PassOutcome(kept_checkpoint(checkpoint, student, run.folder / "prune" / "weights"), figures, tuple(notes))


class Masks(TrainerCallback):  # type: ignore[misc]  # transformers is not followed by mypy
    """Makes masks when their time has come, and keeps pruned weights at zero after every step.

    A mask is what is zero, so that weights alone tell it: a run that goes on takes it from its checkpoint.

    Args:
        checkpoint: the dense model.
        model: that learns.
        settings: of the last mask.
        rise: when masks are made.
        run: what the pass is given; the masks look at an even part of its tokens.
    """

    def __init__(
        self, checkpoint: Checkpoint, model: torch.nn.Module, settings: PruneSettings, rise: Rise, run: PassRun
    ) -> None:
        self._checkpoint, self._model, self._settings, self._rise = checkpoint, model, settings, rise
        tokens = run.tokens
        part = None if tokens is None else tokens[evenly_spread(len(tokens), _CRITERION_SEQUENCES)]
        self._run = replace(run, folder=run.folder / "masks", tokens=part, resumable=False, progress=silent)
        self._paths = {name: path for path, name in parameter_names(model, checkpoint).items()}
        self._masks: dict[str, torch.Tensor] = {}
        self._names = self._pruned_names()

    def _pruned_names(self) -> list[str]:
        """The matrices inside the blocks, as `weights` prunes them."""
        linears = {id(module.weight) for module in blocks_of(self._model).modules() if is_linear(module)}
        return [name for name, path in self._paths.items() if id(self._model.get_parameter(path)) in linears]

    def on_train_begin(self, _arguments: Any, state: Any, *_others: Any, **_keywords: Any) -> None:
        """Take the masks of a run that goes on from its weights."""
        if state.global_step > min(self._rise.moments):
            self._masks = {name: self._weight(name) != 0 for name in self._names}

    def on_step_begin(self, _arguments: Any, state: Any, *_others: Any, **_keywords: Any) -> None:
        """Make a new mask where it is time to."""
        if state.global_step in self._rise.moments:
            self.make(self._rise.share(state.global_step))

    def on_step_end(self, *_arguments: Any, **_keywords: Any) -> None:
        """Put what is pruned back to zero."""
        with torch.no_grad():
            for name, mask in self._masks.items():
                self._weight(name).mul_(mask)

    def make(self, share: float) -> None:
        """Prune the model as it is now to a share of the final sparsity, and hold the zeros from now on."""
        pattern = replace(self._settings.pattern, sparsity=share * self._settings.pattern.sparsity)
        live = live_checkpoint(self._checkpoint, self._model)
        pruned = prune_weights(live, replace(self._settings, pattern=pattern), self._run).checkpoint.tensors
        with torch.no_grad():
            for name in self._names:
                rows = pruned.read_rows(name, 0, pruned.specs[name].rows)
                weight = self._weight(name)
                weight.copy_(torch.from_numpy(rows).reshape(weight.shape))
                self._masks[name] = weight != 0
        shutil.rmtree(self._run.folder, ignore_errors=True)

    def _weight(self, name: str) -> torch.Tensor:
        return self._model.get_parameter(self._paths[name])

    def figures(self) -> dict[str, Figure]:
        """How many weights are zero now."""
        weights = sum(self._weight(name).numel() for name in self._names)
        zeros = sum(int((self._weight(name) == 0).sum()) for name in self._names)
        return {"sparsity": zeros / max(weights, 1), "zeros": zeros, "weights": weights}
