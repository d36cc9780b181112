"""Training: less error of keys and values, or less divergence from the original's answers.

`train_reconstruction` makes maps better at giving keys and values back; `distil` makes any parameters better at the
original's logits. Steps of the latter, its stop rule and what the original said are left to `quant.learning`.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from edgepack.errors import UsageError
from edgepack.progress import silent
from edgepack.quant.learning.answers import Asked, answer_examples
from edgepack.quant.learning.loop import learn
from edgepack.quant.learning.objectives import Distillation
from edgepack.quant.learning.settings import LearningSettings
from edgepack.quant.learning.text_blocks import TokenBlocks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgepack.progress import Progress
    from edgepack.quant.attention.eigen import EigenAttention
    from edgepack.quant.attention.judging import Answer
    from edgepack.quant.attention.moments import Moments
    from edgepack.quant.attention.projector import LearnableProjector

_MOMENTUM = (0.9, 0.98)  # a hundred steps are a run
_WARM_UP = 0.1  # of all steps
_ASKED = Asked(top=256)  # most probable tokens of the original that are compared one by one, the rest as one


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
        looks: (step, loss of what is held out), where anything is; the first is `before`.
    """

    before: float
    after: float
    steps: int
    looks: tuple[tuple[int, float], ...] = ()


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
    """Less divergence from the original's logits; needs `edgepack[train]`.

    Args:
        original: answers that are learnt; asked once for each sequence.
        student: answers that depend on the parameters.
        parameters: that are changed; afterwards they are the best that was judged, the first ones included.
        tokens: [sequences, length], at least two.
        settings: how.
        progress: told of each step.

    Raises:
        UsageError: fewer than two sequences.
        NumericError: a divergence that is not finite.
        DependencyError: a package that training needs is not installed.
    """
    if len(tokens) < 2:
        raise UsageError(f"training: expected at least 2 sequences, one to judge by, got {len(tokens)}")
    learner = _Answering(student, parameters)
    first = [each.detach().clone() for each in learner.parts]
    blocks = TokenBlocks(tokens.cpu().numpy())
    learnt, held_out = blocks.split(settings.held_out)
    with tempfile.TemporaryDirectory(prefix="edgepack-distil-") as scratch:
        teacher = _Answering(original, learner.parts)
        answered = answer_examples(teacher, blocks, _ASKED, Path(scratch) / "answers", progress)
        found = learn(
            learner, answered.part(learnt.rows), Distillation(_ASKED), _learning(settings, learner, blocks.length),
            Path(scratch) / "run", held_out=answered.part(held_out.rows), callbacks=[_beginning_counts()],
            label="Distilling", progress=progress,
        )  # fmt: skip
        del answered
    best = min(loss for _step, loss in found.held_out)
    if best == found.held_out[0][1]:
        _restore(learner.parts, first)
    return Trained(found.held_out[0][1], best, found.steps, found.held_out)


def _learning(settings: TrainingSettings, learner: _Answering, length: int) -> LearningSettings:
    return LearningSettings(
        settings.steps, batch=settings.batch, length=length, rate=settings.rate, relative=True, momentum=_MOMENTUM,
        warm_up=_WARM_UP, seed=settings.seed, device=str(next(learner.parameters()).device),
        judgements=settings.looks, patience=settings.patience, keep_best=True,
    )  # fmt: skip


def _beginning_counts() -> Any:
    """Lets the Trainer hold every judgement against that before the first step, too."""
    from transformers import TrainerCallback

    class Beginning(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, _arguments: Any, state: Any, *_others: Any, **_named: Any) -> None:
            if state.best_metric is None and state.log_history:
                state.best_metric = state.log_history[0].get("eval_loss")

    return Beginning()


class _Logits(NamedTuple):
    """As transformers' models give them, [batch, length, vocabulary]."""

    logits: torch.Tensor


class _Answering(nn.Module):  # type: ignore[misc]
    """Answers as a model that `quant.learning` takes: its parameters are those that learn, and nothing else."""

    def __init__(self, answer: Answer, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.parts = nn.ParameterList(parameters)
        self._answer = answer

    def forward(self, input_ids: torch.Tensor, **_named: Any) -> _Logits:
        """Sequences one after the other: an answer is of one."""
        return _Logits(torch.stack([self._answer(sequence) for sequence in input_ids]))


def _restore(parameters: Iterable[nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _size(parameter: nn.Parameter) -> float:
    return float(parameter.detach().double().square().mean().sqrt())
