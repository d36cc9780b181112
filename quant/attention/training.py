"""Training: Adam on a part of what an answer depends on, judged on sequences that it does not learn from.

`train_reconstruction` makes maps better at giving keys and values back, `distil` makes any parameters better at the
original's logits. Stop rules are here; what is trained is the caller's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edgepack.errors import NumericError, UsageError
from edgepack.progress import silent
from edgepack.quant.attention.judging import divergences

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgepack.progress import Progress
    from edgepack.quant.attention.eigen import EigenAttention
    from edgepack.quant.attention.judging import Answer
    from edgepack.quant.attention.moments import Moments
    from edgepack.quant.attention.projector import LearnableProjector

_MOMENTUM = (0.9, 0.98)  # a hundred steps are a run
_WARM_UP = 0.1  # of all steps
_LONGEST = 1.0  # norm to which a step's gradients are cut


@dataclass(frozen=True)
class TrainingSettings:
    """How logits are learnt.

    Attributes:
        steps: at most.
        rate: of each parameter Adam's, at its height, as a share of the parameter's root mean square: a linear rise,
            then half a cosine down to 0.
        batch: sequences a step.
        held_out: share of the sequences that is set aside to judge by, at least one.
        looks: how often the held-out sequences are judged.
        patience: looks in a row without a new best, after which a run ends.
        seed: of the order of sequences.

    Raises:
        UsageError: a number out of range.
    """

    steps: int = 100
    rate: float = 1e-2
    batch: int = 1
    held_out: float = 0.1
    looks: int = 8
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.looks, self.patience) < 1:
            raise UsageError("training: expected steps, batch, looks and patience of at least 1")
        if not (self.rate > 0 and math.isfinite(self.rate)) or not 0 < self.held_out < 1:
            raise UsageError("training: expected a rate above 0 and a held-out share between 0 and 1")


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes:
        before: the loss that was judged before it.
        after: the least that was judged; the parameters are those.
        steps: that were run.
    """

    before: float
    after: float
    steps: int


def reconstruction_error(projector: LearnableProjector, moments: Moments, metric: torch.Tensor | None) -> torch.Tensor:
    """Mean of (x - x̂)ᵀ M (x - x̂) over what the moments are of, as a share of the same with x̂ the mean: a scalar.

    Exact for any linear maps: with P = down · up and the maps' own mean m, x - x̂ = (x - m) · (1 - P).
    """
    identity = torch.eye(moments.width, dtype=torch.float64, device=projector.down.device)
    measured = identity if metric is None else metric.to(identity)
    rest = identity - projector.down.double() @ projector.up.double()
    shift = moments.mean.to(identity) - projector.mean.double()
    covariance = moments.covariance.to(identity)
    second = covariance + shift[..., :, None] * shift[..., None, :]
    return ((rest.transpose(-1, -2) @ second @ rest) * measured).sum() / (covariance * measured).sum()


def train_reconstruction(eigen: EigenAttention, *, steps: int = 200, rate: float = 0.02) -> tuple[Trained, Trained]:
    """Less error of the keys and the values of the calibration text, under the metric of scores and outputs.

    The loss is exact from the moments, so that no text is run. Principal components under the same metric are its
    minimum already; plain ones, or pairs of rope, are not.

    Returns:
        Of keys and of values: the mean share over layers before and after; both 0 where they are whole.
    """
    found = []
    for maps, of_keys in ((eigen.keys, True), (eigen.values, False)):
        pairs = [] if maps is None else list(zip(maps, eigen.moments, strict=True))
        each = [
            _fit(projector, m.keys if of_keys else m.values, m.key_metric if of_keys else m.value_metric, steps, rate)
            for projector, m in pairs
        ]
        count = max(len(each), 1)
        found.append(Trained(sum(a for a, _ in each) / count, sum(b for _, b in each) / count, steps if each else 0))
    return found[0], found[1]


def _fit(
    projector: LearnableProjector, moments: Moments, metric: torch.Tensor, steps: int, rate: float
) -> tuple[float, float]:
    """The error of one map before and after; the map keeps the best that it was."""
    parameters = list(projector.parameters())
    optimizer = torch.optim.Adam([{"params": [each], "lr": rate * _size(each)} for each in parameters])
    best, kept, first = math.inf, [each.detach().clone() for each in parameters], math.inf
    for step in range(steps + 1):
        loss = reconstruction_error(projector, moments, metric)
        first = float(loss.detach()) if step == 0 else first
        if float(loss.detach()) < best:
            best, kept = float(loss.detach()), [each.detach().clone() for each in parameters]
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] *= 0.5 ** (4 / steps)
        optimizer.step()
    _restore(parameters, kept)
    optimizer.zero_grad()
    return first, best


def distil(
    original: Answer,
    student: Answer,
    parameters: Iterable[torch.nn.Parameter],
    tokens: torch.Tensor,
    settings: TrainingSettings,
    progress: Progress = silent,
) -> Trained:
    """Less divergence from the original's logits.

    Args:
        original: answers that are learnt.
        student: answers that depend on the parameters.
        parameters: that are changed; afterwards they are the best that was judged, the first ones included.
        tokens: [sequences, length], at least two.
        settings: how.
        progress: told of each step.

    Raises:
        UsageError: fewer than two sequences.
        NumericError: a divergence that is not finite.
    """
    run = _Distillation(original, student, list(parameters), tokens, settings)
    return run.run(progress)


class _Distillation:
    """One run."""

    def __init__(
        self,
        original: Answer,
        student: Answer,
        parameters: Sequence[torch.nn.Parameter],
        tokens: torch.Tensor,
        settings: TrainingSettings,
    ) -> None:
        if len(tokens) < 2:
            raise UsageError(f"training: expected at least 2 sequences, one to judge by, got {len(tokens)}")
        apart = max(1, round(settings.held_out * len(tokens)))
        self._held_out, self._learnt = tokens[:: max(2, len(tokens) // apart)][:apart], []
        chosen = set(range(0, len(tokens), max(2, len(tokens) // apart))[:apart])
        self._learnt = [tokens[index] for index in range(len(tokens)) if index not in chosen]
        self._original, self._student, self._settings = original, student, settings
        self._parameters = parameters
        with torch.inference_mode():
            self._answers = [original(sequence) for sequence in self._held_out]

    def run(self, progress: Progress) -> Trained:
        settings, losses = self._settings, [self._look()]
        best, step = self._values(), 0
        every = max(1, math.ceil(settings.steps / settings.looks))
        groups = [{"params": [each], "lr": settings.rate * _size(each)} for each in self._parameters]
        optimizer = torch.optim.Adam(groups, betas=_MOMENTUM)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: _share(at, settings.steps))
        with progress("Distilling", settings.steps, " steps") as advance:
            while step < settings.steps and not self._is_over(losses):
                self._gradients(step)
                torch.nn.utils.clip_grad_norm_(self._parameters, _LONGEST)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                step += 1
                advance(1)
                if step % every == 0 or step == settings.steps:
                    losses.append(self._look())
                    best = self._values() if losses[-1] == min(losses) else best
        _restore(self._parameters, best)
        return Trained(losses[0], min(losses), step)

    def _is_over(self, losses: list[float]) -> bool:
        """Whether the last looks brought nothing."""
        return len(losses) - 1 - losses.index(min(losses)) >= self._settings.patience

    def _gradients(self, step: int) -> None:
        batch, count = self._settings.batch, len(self._learnt)
        for place in range(step * batch, (step + 1) * batch):
            epoch, index = divmod(place, count)
            order = torch.randperm(count, generator=torch.Generator().manual_seed(self._settings.seed + epoch))
            sequence = self._learnt[int(order[index])]
            with torch.no_grad():
                wanted = self._original(sequence)
            loss = divergences(wanted, self._student(sequence)).mean() / batch
            _require_finite(float(loss.detach()), step)
            loss.backward()

    def _look(self) -> float:
        with torch.no_grad():
            pairs = zip(self._held_out, self._answers, strict=True)
            found = [float(divergences(wanted, self._student(sequence)).mean()) for sequence, wanted in pairs]
        loss = sum(found) / len(found)
        _require_finite(loss, None)
        return loss

    def _values(self) -> list[torch.Tensor]:
        return [each.detach().clone() for each in self._parameters]


def _require_finite(loss: float, step: int | None) -> None:
    if not math.isfinite(loss):
        where = "on the held-out sequences" if step is None else f"at step {step + 1}"
        raise NumericError(f"training: expected a finite divergence, got {loss} {where}: a lower rate may help")


def _restore(parameters: Sequence[torch.nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _size(parameter: torch.nn.Parameter) -> float:
    return float(parameter.detach().double().square().mean().sqrt())


def _share(step: int, steps: int) -> float:
    """Of its rate that a step has."""
    rise = max(1, round(_WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
