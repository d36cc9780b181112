"""The steps of a tuning: torch's Adam over a file's parameters, judged on text that it does not learn from.

What is kept is the best state that was judged, the first included, so that held-out divergence never rises. Where
states lie on disk is left to `kept_state`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from edgepack.errors import NumericError, ResourceError
from edgepack.progress import silent
from edgepack.quant.tuning.parts import PARTS
from edgepack.quant.tuning.relaxed import temperature

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from edgepack.progress import Progress
    from edgepack.quant.tuning.kept_state import KeptState
    from edgepack.quant.tuning.settings import TuningSettings
    from edgepack.quant.tuning.student import Student
    from edgepack.quant.tuning.targets import Targets

_WARM_UP = 0.1  # of all steps, over which rates rise
_MOMENTUM = (0.9, 0.98)  # half a hundred steps are a run: 0.999 would still remember the first gradient
_COARSE = 0.1  # nats, of files at which rates were measured: nearer ones learn by steps smaller like their error
_EPSILON = 1e-12  # gradients of a mean over a sequence are small; torch's 1e-8 would hold them back


@dataclass(frozen=True)
class Judged:
    """One look at the held-out text.

    Attributes:
        step: steps before it.
        held_out: mean divergence, nats.
        learnt: mean divergence of the sequences learnt from since the last one; None before the first step.
    """

    step: int
    held_out: float
    learnt: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a tuning came to; the student holds the best state.

    Attributes:
        judged: every look at the held-out text, in order; the first is before anything was tuned.
        steps: that were run.
        planned: steps of the schedule: fewer are run where the stop rule ends it.
        ended: why a run was ended that the stop rule did not end; empty for none.
    """

    judged: tuple[Judged, ...]
    steps: int
    planned: int
    ended: str = ""

    @property
    def best(self) -> Judged:
        """The look that decided; the earliest of equal ones."""
        return min(self.judged, key=lambda each: each.held_out)


@dataclass
class _Run:
    """What changes from step to step."""

    step: int = 0
    judged: list[Judged] = field(default_factory=list)
    best: list[torch.Tensor] = field(default_factory=list)
    learnt: list[float] = field(default_factory=list)


class _NotFiniteError(NumericError):
    """What was found, and what may be done."""

    def __init__(self, told: str, advice: str) -> None:
        super().__init__(f"tune: {told}: {advice}")
        self.told = told


class Tuning:
    """One run.

    Args:
        student: the file's model; its parameters are changed.
        tokens: int64 [sequences, length].
        targets: what the original says to each of them.
        held_out: indices of sequences to judge by.
        learnt: indices of sequences to learn from.
        settings: how.
        kept: where states are kept for another run to go on with.
    """

    def __init__(
        self,
        student: Student,
        tokens: torch.Tensor,
        targets: Targets,
        held_out: list[int],
        learnt: list[int],
        settings: TuningSettings,
        kept: KeptState,
    ) -> None:
        self._student, self._tokens, self._targets = student, tokens, targets
        self._held_out, self._learnt, self._settings, self._kept = held_out, learnt, settings, kept
        self._planned = 1
        self._parameters: list[nn.Parameter] = []
        self._groups: list[dict[str, Any]] = []
        self._rates: list[float] = []
        for part in PARTS:
            found = [each for tensor in student.tensors.values() for each in tensor.parameters_by_part().get(part, [])]
            if found and part in settings.parts:
                rate = settings.rates[part] * settings.rate
                self._groups.append({"params": found, "lr": rate})
                self._rates.append(rate)
                self._parameters += found

    def trial_seconds(self) -> tuple[float, float]:
        """How long a step takes, and a look at the held-out text; nothing is changed."""
        began = time.monotonic()
        self._gradients(0)
        self._clear()
        stepped = time.monotonic()
        self._judge()
        return stepped - began, time.monotonic() - stepped

    def run(self, steps: int, progress: Progress = silent) -> Outcome:
        """Tune; afterwards the student holds the best state.

        Args:
            steps: of the whole run, those of an interrupted one included.
            progress: told of each step.

        Raises:
            NumericError: a divergence that is not finite; the text names the step, and what was kept before it stays.
            ResourceError: the device's memory is full with one sequence.
        """
        self._planned = steps
        run, optimizer = self._begin(steps)
        ended = ""
        try:
            self._advance(run, optimizer, steps, progress)
        except _NotFiniteError as error:
            if not self._settings.ends_at_nan or not run.judged:
                raise
            ended = error.told
            self._clear()
        self._restore(run.best)
        return Outcome(tuple(run.judged), run.step, steps, ended)

    def _advance(self, run: _Run, optimizer: torch.optim.Optimizer, steps: int, progress: Progress) -> None:
        """All steps that are left."""
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps), run.step - 1)
        every = max(1, math.ceil(steps / self._settings.judgements))
        with progress("Tuning", max(steps - run.step, 0), " steps") as advance:
            while run.step < steps and not self._is_hopeless(run.judged):
                learnt = self._gradients(run.step)
                # only now is the state before this step known to be a good one
                self._kept.keep(lambda: self._state(run, optimizer, steps), now=run.step % every == 0)
                run.learnt.append(learnt)
                optimizer.step()
                schedule.step()
                for tensor in self._student.tensors.values():
                    tensor.settle()
                self._clear()
                run.step += 1
                if run.step % every == 0 or run.step == steps:
                    self._look(run)
                advance(1)

    def _begin(self, steps: int) -> tuple[_Run, torch.optim.Optimizer]:
        """A new run, or one that was interrupted; Adam's moments with it."""
        optimizer = torch.optim.Adam(self._groups, betas=_MOMENTUM, eps=_EPSILON)
        state = self._kept.load()
        if state is not None and state["steps"] == steps and len(state["parameters"]) == len(self._parameters):
            self._restore(state["parameters"])
            optimizer.load_state_dict(state["optimizer"])
            judged = [Judged(*item) for item in state["judged"]]
            run = _Run(state["step"], judged, state["best"], state["learnt"])
        else:
            run = _Run()
            self._look(run)
        share = min(1.0, math.sqrt(max(run.judged[0].held_out, 0.0) / _COARSE))
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):  # a run may go on at another rate
            group["lr"] = group["initial_lr"] = rate * share
        return run, optimizer

    def _state(self, run: _Run, optimizer: torch.optim.Optimizer, steps: int) -> dict[str, Any]:
        return {
            "steps": steps, "step": run.step, "learnt": run.learnt, "best": run.best,
            "judged": [(each.step, each.held_out, each.learnt) for each in run.judged],
            "parameters": [each.detach() for each in self._parameters], "optimizer": optimizer.state_dict(),
        }  # fmt: skip

    def _restore(self, values: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._parameters, values, strict=True):
                parameter.copy_(value)

    def _look(self, run: _Run) -> None:
        """Judge the state of now, and remember it where it is the best so far."""
        held_out = self._judge()
        if not math.isfinite(held_out):
            raise self._not_finite("held-out divergence", held_out, run.step)
        if not run.judged or held_out < min(each.held_out for each in run.judged):
            run.best = [each.detach().clone() for each in self._parameters]
        learnt = sum(run.learnt) / len(run.learnt) if run.learnt else None
        run.judged.append(Judged(run.step, held_out, learnt))
        run.learnt = []

    def _is_hopeless(self, judged: list[Judged]) -> bool:
        """Whether the last looks were all worse than the file that was given.

        Worse than the best is no reason: while rates are high states lie around what they come to when rates fall.
        """
        last = judged[1:][-self._settings.patience :]
        return len(last) == self._settings.patience and all(each.held_out > judged[0].held_out for each in last)

    def _judge(self) -> float:
        with torch.no_grad():
            found = [float(self._divergence(index)) for index in self._held_out]
        self._clear()
        return sum(found) / len(found)

    def _gradients(self, step: int) -> float:
        """Gradients of one step's sequences, one after the other; their mean divergence."""
        batch, found = self._settings.batch, 0.0
        self._relax(step)
        for index in self._sequences(step):
            divergence = self._divergence(index) / batch
            found += float(divergence.detach())
            if not math.isfinite(found):
                raise self._not_finite("divergence", found, step)
            divergence.backward()
        self._relax(None)
        return found

    def _relax(self, step: int | None) -> None:
        """Draw the step's moves of integers where these are relaxed; None: whole ones, as the bytes will have."""
        heat = None if step is None else temperature(step, self._planned)
        for number, tensor in enumerate(self._student.tensors.values()):
            tensor.relax(heat, (self._settings.seed * 1_000_003 + (step or 0)) * 10_007 + number)

    def _divergence(self, index: int) -> torch.Tensor:
        device = self._student.device
        try:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = self._student.logits(self._tokens[index : index + 1])[0]
            return self._targets.divergence(index, logits)
        except torch.OutOfMemoryError as error:
            length = self._tokens.shape[1]
            raise ResourceError(
                f"device '{device}': memory is full with one sequence of {length} tokens: use shorter sequences"
                " (--ctx) or another device"
            ) from error

    def _sequences(self, step: int) -> Iterator[int]:
        """Which sequences a step learns from: every epoch in an order of its own, decided by seed and epoch alone."""
        count = len(self._learnt)
        for position in range(step * self._settings.batch, (step + 1) * self._settings.batch):
            epoch, place = divmod(position, count)
            yield self._learnt[_order(count, self._settings.seed, epoch)[place]]

    def _clear(self) -> None:
        """Let go of gradients and of the model's weights."""
        for parameter in self._parameters:
            parameter.grad = None
        self._student.empty()

    def _not_finite(self, what: str, value: float, step: int) -> _NotFiniteError:
        kept = self._kept.step
        again = "begin again" if kept is None else f"the state after step {kept} is kept: go on from it with --resume"
        return _NotFiniteError(f"expected a finite {what}, got {value} at step {step + 1}", f"{again}, --rate lower")


def first_epoch(learnt: list[int], seed: int) -> list[int]:
    """The sequences in the order in which steps learn from them at first."""
    return [learnt[place] for place in _order(len(learnt), seed, 0)]


def _order(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    found: list[int] = torch.randperm(count, generator=generator).tolist()
    return found


def _share(step: int, steps: int) -> float:
    """Of its rate that a step has: a linear rise, then half a cosine down to 0."""
    rise = max(1, round(_WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
