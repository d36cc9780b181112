"""One tuning: the original is asked, then the file's model learns; both within the time that was given.

The steps themselves are `quant.tuning.loop`'s.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.model import Checkpoint
    from edgepack.pipeline.tuning.opened import OpenedFile
    from edgepack.progress import Progress
    from edgepack.quant.tuning.loop import Outcome, Tuning
    from edgepack.quant.tuning.student import Student
    from edgepack.quant.tuning.targets import Targets

_SHARE_OF_ORIGINAL = 1 / 6  # of the time: a step takes at least five times as long as the original over its sequence


class TuningRun:
    """The original's answers, then the file's tuning; both within the time that was given."""

    def __init__(
        self,
        opened: OpenedFile,
        tokens: NDArray[np.int64],
        held_out: list[int],
        learnt: list[int],
        folder: Path,
        teacher: Checkpoint,
    ) -> None:
        import torch

        self._opened, self._settings, self._teacher = opened, opened.settings, teacher
        self._tokens, self._held_out, self._learnt = torch.from_numpy(tokens), held_out, learnt
        self._folder, self._began = folder, time.monotonic()

    def finish(self, progress: Progress, note: Callable[[str], object]) -> tuple[Outcome, Student]:
        """Tune; the student holds the best state."""
        from edgepack.quant.tuning.kept_state import KeptState
        from edgepack.quant.tuning.loop import Tuning

        targets, asked = self._targets(progress)
        student = self._opened.student()
        kept = KeptState(self._folder, self._settings.keep_seconds)
        tuning = Tuning(student, self._tokens, targets, self._held_out, self._learnt, self._settings, kept)
        steps = self._steps(tuning, asked)
        note(f"tune: {steps} steps")
        return tuning.run(steps, progress), student

    def _targets(self, progress: Progress) -> tuple[Targets, int]:
        """What the original says, and to how many of the sequences to learn from; kept for a run that goes on."""
        from edgepack.quant.calibration.blocks import whole_model
        from edgepack.quant.tuning.kept_state import load_targets, save_targets
        from edgepack.quant.tuning.loop import first_epoch
        from edgepack.quant.tuning.targets import empty_targets, keep_target

        settings, (count, length) = self._settings, self._tokens.shape
        known = load_targets(self._folder)
        if known is not None:
            return known
        original = whole_model(self._teacher, settings.device)
        vocabulary = int(original.get_output_embeddings().weight.shape[0])
        targets = empty_targets(count, length, min(settings.top, vocabulary))
        order = [*self._held_out, *first_epoch(self._learnt, settings.seed)]
        most = len(self._held_out) + (len(order) if settings.steps is None else settings.steps * settings.batch)
        asked = 0
        with progress("Asking the original", min(most, len(order)), " sequences") as advance:
            for index in order[:most]:
                keep_target(targets, index, self._tokens[index].to(settings.device), _forward(original))
                asked += 1
                advance(1)
                if asked > len(self._held_out) and self._has_asked_enough():
                    break
        save_targets(self._folder, targets, asked - len(self._held_out))
        return targets, asked - len(self._held_out)

    def _has_asked_enough(self) -> bool:
        """Whether the steps for which time is left will not learn from more sequences."""
        minutes = self._settings.minutes
        return minutes is not None and time.monotonic() - self._began > minutes * 60 * _SHARE_OF_ORIGINAL

    def _steps(self, tuning: Tuning, asked: int) -> int:
        """The number given, or as many as fit into the minutes that are left; an interrupted run's own."""
        from edgepack.quant.tuning.kept_state import load_steps, save_steps

        if self._settings.steps is not None:
            return self._settings.steps
        known = load_steps(self._folder)
        if known is not None:
            return known
        assert self._settings.minutes is not None
        step, look = tuning.trial_seconds()
        left = self._settings.minutes * 60 - (time.monotonic() - self._began)
        steps = max(1, int((left - (self._settings.judgements + 1) * look) / step))
        if asked < len(self._learnt):  # what was not asked cannot be learnt from: as many steps as a run of --steps
            steps = min(steps, max(1, asked // self._settings.batch))
        save_steps(self._folder, steps)
        return steps


def _forward(model: object) -> Callable[[object], object]:
    return lambda tokens: model(input_ids=tokens, use_cache=False).logits  # type: ignore[operator]
