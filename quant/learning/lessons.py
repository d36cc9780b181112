"""What a pass lets a changed model learn from: its calibration tokens, with what the model said before it was changed.

Shared by the passes that train; how they change the model is theirs, the run is `loop`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.quant.calibration.text import evenly_spread
from edgepack.quant.learning.answers import Asked, answer_examples
from edgepack.quant.learning.models import trainable_model
from edgepack.quant.learning.objectives import Distillation, NextToken
from edgepack.quant.learning.settings import LearningSettings
from edgepack.quant.learning.text_blocks import TokenBlocks
from edgepack.quant.passes.training import DEFAULTS, HELD_OUT, LEARNING_KEYS

if TYPE_CHECKING:
    from edgepack.model import Checkpoint
    from edgepack.quant.learning.loop import Learnt
    from edgepack.quant.learning.objectives import Objective
    from edgepack.quant.passes.run import Figure, PassRun
    from edgepack.quant.passes.settings import Settings

_TOP = 64  # most probable tokens that are kept of the original


@dataclass(frozen=True)
class Lesson:
    """What a run of `learn` is given beside the model.

    Attributes:
        examples: to learn from.
        held_out: to judge by.
        objective: what a batch costs.
        tokens: of the text that is learnt from.
    """

    examples: Any
    held_out: Any
    objective: Objective
    tokens: int


def learning_settings(settings: Settings, run: PassRun, **others: Any) -> LearningSettings:
    """The settings of a pass as those of a run.

    Args:
        settings: of the pass, with all of `LEARNING_KEYS`.
        run: what the pass is given.
        others: fields of `LearningSettings` that the pass decides.
    """
    value: dict[str, Any] = {
        key: DEFAULTS.get(key) if settings[key] is None else settings[key] for key in LEARNING_KEYS
    }
    length = run.tokens.shape[1] if run.tokens is not None else 2
    return LearningSettings(
        value["steps"], batch=value["batch"], length=length, rate=value["rate"], warm_up=value["warm_up"],
        schedule=value["decay"], seed=value["seed"], device=run.device, max_memory=value["max_memory"],
        keep_every=value["keep_every"] if run.resumable else 0, **others,
    )  # fmt: skip


def open_lesson(
    checkpoint: Checkpoint, run: PassRun, settings: LearningSettings, objective: Distillation | NextToken, label: str
) -> Lesson:
    """The tokens of a pass, split, with the model's own answers where the objective needs them.

    Of a text that is longer than the run, sequences are taken that are spread evenly over it. The model is in memory
    while it is asked, and not afterwards.

    Raises:
        CalibrationError: no tokens, or only one sequence.
        EdgepackError: as `answer_examples`.
    """
    tokens = run.required_tokens(f"pass '{label}'").numpy()
    held = TokenBlocks(tokens).split(HELD_OUT)[1].rows
    wanted = evenly_spread(len(tokens) - len(held), settings.steps * settings.batch)
    learnt = np.setdiff1d(np.arange(len(tokens)), held)[wanted]
    chosen = TokenBlocks(tokens[np.concatenate([learnt, held])])
    place = np.arange(len(chosen))
    first, last = place[: len(learnt)], place[len(learnt) :]
    if isinstance(objective, NextToken):
        return Lesson(TokenBlocks(chosen.tokens, first), TokenBlocks(chosen.tokens, last), objective, tokens.size)
    teacher = trainable_model(checkpoint, run.device).requires_grad_(False)
    answered = answer_examples(teacher, chosen, objective.asked, run.folder / label / "answers", run.progress)
    return Lesson(answered.part(first), answered.part(last), objective, chosen.tokens.size)


def recovery_objective(recover: str, blocks: int) -> Distillation | NextToken:
    """What `recover = …` of a recipe means: `logits`, `hidden` (with two blocks' outputs), or the `text` itself."""
    if recover == "text":
        return NextToken()
    if recover == "hidden":
        return Distillation(Asked(_TOP, hidden=tuple(sorted({blocks // 2, blocks - 1}))), hidden=1.0)
    return Distillation(Asked(_TOP))


def learning_figures(learnt: Learnt, lesson: Lesson) -> dict[str, Figure]:
    """What a pass reports of its run."""
    figures: dict[str, Figure] = {"steps_run": learnt.steps, "text_tokens": lesson.tokens}
    if learnt.losses:
        last = [loss for _, loss in learnt.losses[-max(1, len(learnt.losses) // 20) :]]
        figures |= {"first_loss": learnt.losses[0][1], "last_loss": sum(last) / len(last)}
    if learnt.held_out:
        figures["held_out_loss"] = learnt.held_out[-1][1]
    return figures


def with_own_defaults(settings: Settings, **defaults: Any) -> dict[str, Any]:
    """A pass' settings with other defaults than `DEFAULTS`."""
    return {**settings, **{key: value for key, value in defaults.items() if settings[key] is None}}
