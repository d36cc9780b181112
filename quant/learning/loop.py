"""One run of learning: a model, examples and an objective in; the model changed and a record of the run out.

The steps are transformers' Trainer's (`trainer`); memory is planned in `memory`. Every pass and command that trains
comes through here: what they train and by what they measure is theirs.
"""

from __future__ import annotations

import random
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Subset

from edgepack.errors import CalibrationError, DependencyError, ResourceError, UsageError
from edgepack.progress import silent
from edgepack.quant.learning.checkpoints import checkpoints, last_checkpoint, remove_halves, step_of
from edgepack.quant.learning.lengths import heaviest, lengths_of
from edgepack.quant.learning.memory import Plan, plan_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn
    from transformers import TrainerCallback

    from edgepack.progress import Progress
    from edgepack.quant.learning.objectives import Objective
    from edgepack.quant.learning.settings import LearningSettings
    from edgepack.quant.learning.trainer import LearningTrainer

_MOST_LOGGED = 1000  # losses of a run that are kept: one each so many steps where there are more


@dataclass(frozen=True)
class Learnt:
    """What a run came to; the model holds its last state, or its best where that was asked for.

    Attributes:
        steps: that were run, those of an interrupted run included.
        planned: steps of the schedule: fewer are run where held-out examples end it.
        losses: (step, mean loss since the last one), those of an interrupted run included.
        held_out: (step, loss of the held-out examples), first that before anything was learnt.
        best_step: whose state the model holds.
        plan: how it went through memory; None where nothing was run.
        seconds: wall time of this call.
        cpu_seconds: the process' time of this call.
    """

    steps: int
    planned: int
    losses: tuple[tuple[int, float], ...] = ()
    held_out: tuple[tuple[int, float], ...] = ()
    best_step: int = 0
    plan: Plan | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0


def learn(
    model: nn.Module,
    examples: Any,
    objective: Objective,
    settings: LearningSettings,
    folder: Path,
    *,
    held_out: Any = None,
    callbacks: Sequence[TrainerCallback] = (),
    resume: bool = False,
    label: str = "Learning",
    progress: Progress = silent,
    note: Callable[[str], object] = lambda _line: None,
) -> Learnt:
    """Let a model learn; modifies `model` in place. With 0 steps it is as it was, to the bit.

    Args:
        model: transformers' (or peft's around it), on the settings' device; its parameters with a gradient learn.
        examples: a torch dataset of dictionaries of tensors; `input_ids` and `labels` [length] are among them.
        objective: what a batch costs.
        settings: how.
        folder: of the run's checkpoints, and of nothing else.
        held_out: examples to judge by; None for no judgements.
        callbacks: of transformers, for what changes while the model learns.
        resume: go on from the last whole checkpoint in the folder, with the losses that an unbroken run would have.
        label: names the run in the progress.
        progress: told of each step.
        note: told what was changed to fit, a line at a time.

    Raises:
        NumericError: a loss or a gradient that is not finite; the text has the step, the last checkpoint stays.
        ResourceError: memory or disk is full; the last checkpoint stays.
        CalibrationError: there are no examples.
        UsageError: a device that torch lacks.
        DependencyError: a package that the Trainer needs is not installed.
    """
    if not settings.steps:
        return Learnt(0, 0)
    if not len(examples):
        raise CalibrationError("learning: expected at least one example, got none")
    check_packages()
    check_device(settings.device)
    settings = _fitting(settings, lengths_of(examples), note)
    plan = plan_memory(model, heaviest(examples), objective, settings)
    if plan.note:
        note(plan.note)
    began, began_cpu = time.monotonic(), time.process_time()
    kept = _checkpoint(folder, resume=resume)
    with _quiet(), _own_randomness():
        trainer = _trainer(model, examples, objective, settings, plan, folder, held_out, callbacks)
        _run(trainer, kept, settings, plan.recomputes, label, progress)
    return _learnt(trainer, settings, plan, time.monotonic() - began, time.process_time() - began_cpu)


def check_packages() -> None:
    """Raise DependencyError where the Trainer would fail for want of a package; else have them all in memory."""
    absent = [name for name in ("transformers", "accelerate") if find_spec(name) is None]
    if absent:
        raise DependencyError(f"learning: needs {absent[0]}: pip install 'edgepack[train]'")
    import_module("edgepack.quant.learning.trainer")  # what it takes is counted before memory is planned


def check_device(device: str) -> None:
    """Raise UsageError for a device that torch lacks."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"learning: device '{device}': {str(error).splitlines()[0]}") from error


def _fitting(settings: LearningSettings, lengths: NDArray[np.int64], note: Callable[[str], object]) -> LearningSettings:
    """The settings with a length that examples have, and a batch that they can fill."""
    settings, count = replace(settings, length=int(lengths.max())), len(lengths)
    if settings.batch <= count:
        return settings
    note(f"learning: {count} examples are all there are: the batch is {count}, not {settings.batch}")
    return replace(settings, batch=count)


def _checkpoint(folder: Path, *, resume: bool) -> Path | None:
    """What to go on from; what else lies there of an earlier run is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_halves(folder)
    if resume:
        return last_checkpoint(folder)
    for older in checkpoints(folder):
        shutil.rmtree(older)
    return None


def _trainer(
    model: nn.Module, examples: Any, objective: Objective, settings: LearningSettings, plan: Plan, folder: Path,
    held_out: Any, callbacks: Sequence[TrainerCallback],
) -> LearningTrainer:  # fmt: skip
    from transformers import EarlyStoppingCallback
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from edgepack.quant.learning.trainer import LearningTrainer

    whole = len(examples) // settings.batch * settings.batch  # so that parts of a batch never change what is in it
    stops = [EarlyStoppingCallback(settings.patience)] if settings.patience and held_out is not None else []
    trainer = LearningTrainer(
        objective, relative=settings.relative, model=model,
        args=_arguments(settings, plan, folder, judges=held_out is not None),
        train_dataset=examples if whole == len(examples) else Subset(examples, range(whole)), eval_dataset=held_out,
        callbacks=[*callbacks, *stops],
    )  # fmt: skip
    for unwanted in (PrinterCallback, ProgressCallback):  # they print to standard output
        trainer.remove_callback(unwanted)
    return trainer


def _arguments(settings: LearningSettings, plan: Plan, folder: Path, *, judges: bool) -> Any:
    from transformers import TrainingArguments

    device, steps = torch.device(settings.device), settings.steps
    judges = judges and bool(settings.judgements)
    every = max(1, steps // max(settings.judgements, 1))
    keeps_best = judges and (settings.keep_best or bool(settings.patience))
    keep = every if keeps_best else settings.keep_every
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, seed=settings.seed, data_seed=settings.seed,
        per_device_train_batch_size=plan.batch, per_device_eval_batch_size=plan.batch,
        gradient_accumulation_steps=plan.accumulation, learning_rate=settings.rate, optim="adamw_torch",
        lr_scheduler_type=settings.schedule, warmup_steps=round(settings.warm_up * steps),
        weight_decay=settings.weight_decay, adam_beta1=settings.momentum[0], adam_beta2=settings.momentum[1],
        max_grad_norm=settings.clip, bf16=device.type == "cuda",
        use_cpu=device.type == "cpu", logging_steps=max(1, steps // _MOST_LOGGED), logging_nan_inf_filter=False,
        eval_strategy="steps" if judges else "no", eval_steps=every, eval_on_start=judges,
        prediction_loss_only=True, save_strategy="steps" if keep else "no", save_steps=keep or steps,
        load_best_model_at_end=keeps_best, metric_for_best_model="loss", greater_is_better=False,
        disable_tqdm=True, report_to="none", remove_unused_columns=False, dataloader_pin_memory=False,
        label_names=["labels"], torch_empty_cache_steps=None,
    )  # fmt: skip
    if device.type == "cuda":
        arguments._n_gpu = 1  # noqa: SLF001 - more cards are there, the device is one
    return arguments


def _run(
    trainer: LearningTrainer, kept: Path | None, settings: LearningSettings, recomputes: bool, label: str,
    progress: Progress,
) -> None:  # fmt: skip
    from transformers.trainer_callback import TrainerState

    from edgepack.quant.learning.trainer import Watching

    done = 0 if kept is None else step_of(kept)
    if kept is not None and done >= settings.steps:  # the run had ended: the Trainer would take one more step
        trainer.state = TrainerState.load_from_json(str(kept / "trainer_state.json"))
        best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
        trainer._load_from_checkpoint(str(kept if best is None else best))  # noqa: SLF001
        return
    with _recomputing(trainer.model, recomputes), progress(label, settings.steps - done, " steps") as told:
        watching = Watching(told)
        watching.trainer = trainer
        trainer.add_callback(watching)
        try:
            trainer.train(resume_from_checkpoint=None if kept is None else str(kept))
        except torch.OutOfMemoryError as error:
            raise ResourceError(
                f"device '{settings.device}': memory is full with {trainer.args.per_device_train_batch_size} examples"
                f" of {settings.length} tokens at once: give --max-memory, or shorter examples"
            ) from error
        finally:
            trainer.remove_callback(watching)


@contextmanager
def _recomputing(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Compute activations inside blocks again for the backward pass, for the length of a `with` block."""
    if not wanted:
        yield
        return
    new = hasattr(model, "activation_checkpointing_enable")  # transformers 5.20; the older name goes with 6
    kind = "activation" if new else "gradient"
    getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(model, f"{kind}_checkpointing_disable")()


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars of transformers' own, which says how it writes every checkpoint."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Leave the generators of Python, numpy and torch as they were: the Trainer seeds them all."""
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


def _learnt(
    trainer: LearningTrainer, settings: LearningSettings, plan: Plan, seconds: float, cpu_seconds: float
) -> Learnt:
    state = trainer.state
    losses = tuple((each["step"], float(each["loss"])) for each in state.log_history if "loss" in each)
    held_out = tuple((each["step"], float(each["eval_loss"])) for each in state.log_history if "eval_loss" in each)
    best = state.best_global_step if trainer.args.load_best_model_at_end else None
    return Learnt(
        state.global_step, settings.steps, losses, held_out, state.global_step if best is None else best, plan,
        seconds, cpu_seconds,
    )  # fmt: skip
