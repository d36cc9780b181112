"""transformers' Trainer with what edgepack asks of a run: any objective, checkpoints that are whole or not there.

Optimiser, schedule, accumulation, mixed precision and evaluation are the Trainer's. Which settings it is given and what
becomes of its record is left to `loop`.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback

from edgepack.errors import NumericError, ResourceError
from edgepack.quant.learning.checkpoints import PREFIX, checkpoints, last_checkpoint, mark_whole, step_of
from edgepack.quant.learning.lengths import LikeLengths, lengths_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgepack.quant.learning.objectives import Objective

_ROOM = 1 << 16  # bytes: a disk with less is full, however a library says so


class LearningTrainer(Trainer):  # type: ignore[misc]  # transformers is not followed by mypy
    """A Trainer whose loss is an `Objective`.

    Args:
        objective: what a batch costs.
        relative: whether the rate is a share of each parameter's root mean square.
        settings: the Trainer's own keywords.
    """

    optimizer: Any  # the Trainer's, of torch

    def __init__(self, objective: Objective, *, relative: bool = False, **settings: Any) -> None:
        super().__init__(data_collator=stacked, **settings)
        self._objective, self._relative = objective, relative
        self.model_accepts_loss_kwargs = False  # a batch costs a mean: the Trainer divides it by the accumulation

    def create_optimizer(self, model: Any = None) -> Any:
        """The Trainer's; with relative rates AdamW whose groups are single parameters."""
        if not self._relative or self.optimizer is not None:
            return super().create_optimizer(model)
        given = self.args
        groups = [
            {"params": [each], "lr": given.learning_rate * float(each.detach().double().square().mean().sqrt())}
            for each in self.model.parameters()
            if each.requires_grad
        ]
        betas = (given.adam_beta1, given.adam_beta2)
        self.optimizer = torch.optim.AdamW(groups, betas=betas, weight_decay=given.weight_decay)
        return self.optimizer

    def _get_train_sampler(self, *others: Any) -> Any:
        """The Trainer's; where examples are of different lengths, those of like length share a step."""
        lengths = lengths_of(self.train_dataset)
        if lengths.min() == lengths.max():
            return super()._get_train_sampler(*others)
        batch = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return LikeLengths(lengths.tolist(), batch, self.args.data_seed)

    def compute_loss(
        self, model: Any, inputs: Mapping[str, torch.Tensor], return_outputs: bool = False, **_others: Any
    ) -> Any:
        """The objective; raises NumericError with the step where it is NaN or infinite."""
        loss = self._objective(model, inputs)
        if not torch.isfinite(loss.detach()):
            raise self._not_finite(f"a loss of {float(loss.detach())}")
        return (loss, {"loss": loss}) if return_outputs else loss

    def check_gradients(self) -> None:
        """Raise NumericError where a gradient is NaN or infinite: before a step, weights are still good."""
        for parameter in self.model.parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise self._not_finite("gradients that are NaN or infinite")

    def _not_finite(self, what: str) -> NumericError:
        step, kept = self.state.global_step + 1, last_checkpoint(Path(self.args.output_dir))
        again = "begin again" if kept is None else f"the checkpoint after step {step_of(kept)} is kept"
        return NumericError(f"learning: expected finite numbers, got {what} at step {step}: {again}; lower the rate")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint that counts only once all of it is on disk; only then are older ones removed."""
        folder = Path(self.args.output_dir)
        made = folder / f"{PREFIX}{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            mark_whole(made)
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = _reason(error, folder)
            shutil.rmtree(made, ignore_errors=True)
            kept = last_checkpoint(folder)
            left = "none before it" if kept is None else f"that after step {step_of(kept)} is kept for --resume"
            raise ResourceError(
                f"learning: the checkpoint after step {self.state.global_step} cannot be written: {reason}; {left}"
            ) from error
        best = self.state.best_model_checkpoint
        for older in checkpoints(folder)[:-1]:
            if best is None or older.resolve() != Path(best).resolve():
                shutil.rmtree(older, ignore_errors=True)


def _reason(error: Exception, folder: Path) -> str:
    """What a failed write is put down to: torch and safetensors say in words of their own that a disk is full."""
    told: str = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return os.strerror(errno.ENOSPC) if shutil.disk_usage(folder).free < _ROOM else told


class Watching(TrainerCallback):  # type: ignore[misc]  # transformers is not followed by mypy
    """Tells progress of each step, and looks at gradients before it.

    Args:
        advance: told of 1 a step.
    """

    def __init__(self, advance: Callable[[int], object]) -> None:
        self._advance = advance
        self.trainer: LearningTrainer | None = None

    def on_pre_optimizer_step(self, *_arguments: Any, **_keywords: Any) -> None:
        """As transformers calls it."""
        assert self.trainer is not None
        self.trainer.check_gradients()

    def on_step_end(self, *_arguments: Any, **_keywords: Any) -> None:
        """As transformers calls it."""
        self._advance(1)


def stacked(items: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch: examples that are shorter than others are filled up at the end, their labels with -100."""
    found = {}
    for key in items[0]:
        values = [item[key] for item in items]
        longest = max(len(value) for value in values)
        filling = -100 if key == "labels" else 0
        padded = [
            value if len(value) == longest
            else torch.cat([value, value.new_full((longest - len(value), *value.shape[1:]), filling)])
            for value in values
        ]  # fmt: skip
        found[key] = torch.stack(padded)
    return found
