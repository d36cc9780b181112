"""How a model learns: values only. What they do is told in `loop`, `memory` and `trainer`."""

from __future__ import annotations

from dataclasses import dataclass

from edgepack.errors import UsageError

MOST_STEPS = 10_000_000
SCHEDULES = ("cosine", "linear", "constant_with_warmup")  # as transformers spells them


@dataclass(frozen=True)
class LearningSettings:
    """Of one run.

    Attributes:
        steps: optimiser steps; 0 leaves the model as it is.
        batch: examples a step, however many go through the model at once.
        length: tokens of an example at most; what `memory` plans for.
        rate: AdamW's learning rate at the height of the schedule.
        relative: whether the rate is a share of each parameter's root mean square before the run, for parameters of
            unlike sizes; one of zeros does not learn then.
        momentum: AdamW's two betas.
        warm_up: share of the steps over which the rate rises.
        schedule: how it falls afterwards, in transformers' spelling.
        weight_decay: AdamW's.
        clip: gradients of a greater norm are scaled to it.
        seed: of the order of examples and of everything else that is drawn.
        device: a torch device.
        max_memory: bytes that the run may take; None for no limit.
        keep_every: steps between two checkpoints; 0 for none but the last.
        judgements: how often in a run the held-out examples are judged; 0 for never.
        patience: judgements without a better one after which a run ends, with the best kept; 0 for none.
        keep_best: whether the model ends as it was at its best judgement instead of at its last step.

    Raises:
        UsageError: numbers out of range, or that contradict each other.
    """

    steps: int
    batch: int = 8
    length: int = 512
    rate: float = 1e-4
    relative: bool = False
    momentum: tuple[float, float] = (0.9, 0.999)
    warm_up: float = 0.05
    schedule: str = "cosine"
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    device: str = "cpu"
    max_memory: int | None = None
    keep_every: int = 0
    judgements: int = 4
    patience: int = 0
    keep_best: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.steps <= MOST_STEPS:
            raise UsageError(f"learning: expected 0 to {MOST_STEPS} steps, got {self.steps}")
        if self.batch < 1 or self.length < 2:
            raise UsageError(
                f"learning: expected a batch of at least 1 and a length of at least 2, got {self.batch} and"
                f" {self.length}"
            )
        if not 0 < self.rate < float("inf") or not 0 < self.clip < float("inf") or not 0 <= self.weight_decay < 1:
            raise UsageError(
                "learning: expected a rate and a clip above 0 and a weight decay from 0 to 1, got"
                f" {self.rate}, {self.clip} and {self.weight_decay}"
            )
        if not all(0 <= each < 1 for each in self.momentum):
            raise UsageError(f"learning: expected betas from 0 to below 1, got {self.momentum}")
        if not 0 <= self.warm_up <= 1:
            raise UsageError(f"learning: expected a share from 0 to 1 for the warm-up, got {self.warm_up}")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"learning: expected a schedule of {', '.join(SCHEDULES)}, got '{self.schedule}'")
        if min(self.keep_every, self.judgements, self.patience) < 0 or (self.max_memory or 1) < 1:
            raise UsageError("learning: expected keep_every, judgements, patience and max_memory not below 0")
        if (self.keep_best or self.patience) and not self.judgements:
            raise UsageError("learning: keep_best and patience need judgements, got none")
