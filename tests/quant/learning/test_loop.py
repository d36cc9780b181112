"""A run of learning: the identity, the same curve after a kill and in less memory, bad numbers and full disks."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from edgepack.errors import CalibrationError, DependencyError, NumericError, ResourceError, UsageError
from edgepack.quant.learning.checkpoints import checkpoints, step_of
from edgepack.quant.learning.loop import learn
from edgepack.quant.learning.memory import footprint, plan_memory
from edgepack.quant.learning.models import trainable_model
from edgepack.quant.learning.objectives import NextToken
from edgepack.quant.learning.settings import LearningSettings
from edgepack.quant.learning.text_blocks import TokenBlocks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgepack.model import Checkpoint

SHORT = LearningSettings(6, batch=4, length=16, rate=1e-2)
KEPT = LearningSettings(6, batch=4, length=16, rate=1e-2, keep_every=2)


class Killed(TrainerCallback):
    """Ends a run as Ctrl-C does, in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, _arguments: Any, state: Any, *_others: Any, **_keywords: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in model.named_parameters()}


def assert_same(one: torch.nn.Module, two: torch.nn.Module) -> None:
    theirs = weights(two)
    for name, value in weights(one).items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=0, msg=name)


def test_no_steps_leave_every_bit(tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path) -> None:
    model = trainable_model(tiny)
    learnt = learn(model, blocks, NextToken(), LearningSettings(0), tmp_path / "run")
    assert learnt.steps == 0
    assert not (tmp_path / "run").exists()
    assert_same(model, trainable_model(tiny))


def test_loss_falls_and_the_tie_stays(tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path) -> None:
    model = trainable_model(tiny)
    settings = LearningSettings(40, batch=4, length=16, rate=2e-2, judgements=2)
    learnt_from, held_out = blocks.split(0.1)
    learnt = learn(model, learnt_from, NextToken(), settings, tmp_path, held_out=held_out)
    assert learnt.steps == learnt.planned == 40
    assert learnt.losses[-1][1] < learnt.losses[0][1] / 2
    assert [step for step, _ in learnt.held_out] == [0, 20, 40]
    assert learnt.held_out[-1][1] < learnt.held_out[0][1] / 2
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_relative_rate_moves_each_parameter_by_its_share_of_its_size(
    tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path
) -> None:
    model = trainable_model(tiny)
    before = weights(model)
    settings = LearningSettings(1, batch=4, length=16, rate=1e-2, relative=True, momentum=(0.5, 0.9), warm_up=0)
    learn(model, blocks, NextToken(), settings, tmp_path)
    for name, value in weights(model).items():  # Adam's first step moves by the rate, whatever the gradient
        size = float(before[name].double().square().mean().sqrt())
        assert float((value - before[name]).abs().max()) == pytest.approx(1e-2 * size, rel=0.02), name


def test_a_killed_run_gives_the_same_curve_and_weights(tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path) -> None:
    whole = trainable_model(tiny)
    unbroken = learn(whole, blocks, NextToken(), KEPT, tmp_path / "whole")
    broken = trainable_model(tiny)
    with pytest.raises(KeyboardInterrupt):
        learn(broken, blocks, NextToken(), KEPT, tmp_path / "run", callbacks=[Killed(5)])
    assert [step_of(each) for each in checkpoints(tmp_path / "run")] == [4]
    resumed = trainable_model(tiny)
    gone_on = learn(resumed, blocks, NextToken(), KEPT, tmp_path / "run", resume=True)
    assert gone_on.losses == unbroken.losses
    assert_same(resumed, whole)
    again = trainable_model(tiny)  # a run that had ended is only taken up
    assert learn(again, blocks, NextToken(), KEPT, tmp_path / "run", resume=True).losses == unbroken.losses
    assert_same(again, whole)


def test_a_half_written_checkpoint_counts_for_nothing(tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path) -> None:
    learn(trainable_model(tiny), blocks, NextToken(), KEPT, tmp_path)
    (tmp_path / "checkpoint-99").mkdir()
    (tmp_path / "checkpoint-99" / "model.safetensors").write_bytes(b"half")
    learnt = learn(trainable_model(tiny), blocks, NextToken(), KEPT, tmp_path, resume=True)
    assert learnt.steps == 6
    assert not (tmp_path / "checkpoint-99").exists()


def test_a_full_disk_leaves_the_last_good_checkpoint(
    tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, real = [], torch.save

    def save(content: Any, path: Any, *others: Any, **keywords: Any) -> None:
        saved.append(path)
        if "checkpoint-4" in str(path) and len(saved) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(content, path, *others, **keywords)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(ResourceError, match=r"after step 4 .*No space left on device; that after step 2 is kept"):
        learn(trainable_model(tiny), blocks, NextToken(), KEPT, tmp_path)
    assert [step_of(each) for each in checkpoints(tmp_path)] == [2]
    monkeypatch.setattr(torch, "save", real)
    whole = learn(trainable_model(tiny), blocks, NextToken(), KEPT, tmp_path / "whole")
    assert learn(trainable_model(tiny), blocks, NextToken(), KEPT, tmp_path, resume=True).losses == whole.losses


class Poisoned(NextToken):
    """Gives NaN, or gradients that are NaN, from a call on."""

    def __init__(self, call: int, *, backward: bool) -> None:
        object.__setattr__(self, "state", {"left": call, "backward": backward})

    def __call__(self, model: Any, inputs: Any) -> torch.Tensor:
        loss = super().__call__(model, inputs)
        state: dict[str, Any] = self.__dict__["state"]
        state["left"] -= 1
        if state["left"] >= 0:
            return loss
        return loss + (loss - loss.detach()).sqrt() if state["backward"] else loss * float("nan")


@pytest.mark.parametrize("backward", [False, True])
def test_what_is_not_finite_names_its_step_and_leaves_good_weights(
    tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path, backward: bool
) -> None:
    model = trainable_model(tiny)
    with pytest.raises(NumericError, match=r"at step 4: the checkpoint after step 2 is kept"):
        learn(model, blocks, Poisoned(3, backward=backward), KEPT, tmp_path)
    assert all(torch.isfinite(each).all() for each in model.parameters())
    assert [step_of(each) for each in checkpoints(tmp_path)] == [2]


@pytest.mark.parametrize(("size", "recomputes"), [(4, True), (2, True), (1, True)])
def test_less_memory_changes_the_batch_and_not_the_curve(
    tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, recomputes: bool
) -> None:
    monkeypatch.setattr("edgepack.quant.learning.memory.resident", lambda _device: 0)
    model, notes = trainable_model(tiny), list[str]()
    free = learn(trainable_model(tiny), blocks, NextToken(), SHORT, tmp_path / "free")
    limit = footprint(model, blocks[0], NextToken(), 16).peak(size, recomputes=recomputes)
    bounded = LearningSettings(6, batch=4, length=16, rate=1e-2, max_memory=limit)
    learnt = learn(model, blocks, NextToken(), bounded, tmp_path / "bounded", note=notes.append)
    assert learnt.plan is not None
    assert (learnt.plan.batch, learnt.plan.accumulation, learnt.plan.recomputes) == (size, 4 // size, recomputes)
    assert notes == [learnt.plan.note]
    np.testing.assert_allclose([loss for _, loss in learnt.losses], [loss for _, loss in free.losses], rtol=1e-5)


def test_memory_is_met_by_recomputing_first_and_then_by_fewer_at_once(tiny: Checkpoint, blocks: TokenBlocks) -> None:
    from edgepack.quant.learning.memory import Footprint, plan_of

    found = Footprint(fixed=1000, blocks=100, rest=10, edges=5, count=10)
    notes = {}
    for limit in (10_000, 1200, 1100, 1032):
        notes[limit] = plan_of(found, 8, limit, 16, recomputes=True)
    assert [(each.batch, each.accumulation, each.recomputes) for each in notes.values()] == [
        (8, 1, False), (4, 2, True), (2, 4, True), (1, 8, True),
    ]  # fmt: skip
    assert notes[10_000].note == ""
    assert "a batch of 8 goes through in parts of 2" in notes[1100].note
    with pytest.raises(ResourceError, match=r"--max-memory 1.01 kB: one example of 16 tokens"):
        plan_of(found, 8, 1010, 16, recomputes=True)
    model = trainable_model(tiny)
    bounded = LearningSettings(1, batch=4, length=16, max_memory=1000)
    with pytest.raises(ResourceError, match="one example of 16 tokens at a time needs about"):
        plan_memory(model, blocks[0], NextToken(), bounded)
    assert all(each.grad is None for each in model.parameters())


def test_a_batch_is_no_larger_than_what_there_is(tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path) -> None:
    notes: list[str] = []
    settings = LearningSettings(2, batch=64, length=16)
    learn(trainable_model(tiny), blocks, NextToken(), settings, tmp_path, note=notes.append)
    assert notes == ["learning: 18 examples are all there are: the batch is 18, not 64"]


def test_patience_ends_a_run_and_the_best_is_kept(tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path) -> None:
    other = TokenBlocks(np.random.default_rng(1).integers(0, 40, (4, 16)))  # what is learnt does not help here
    settings = LearningSettings(60, batch=4, length=16, rate=5e-2, warm_up=0.0, judgements=12, patience=2)
    learnt = learn(trainable_model(tiny), blocks, NextToken(), settings, tmp_path, held_out=other)
    assert learnt.steps < learnt.planned
    assert learnt.best_step == min(learnt.held_out[1:], key=lambda each: each[1])[0]


def test_progress_goes_from_where_a_run_goes_on(tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path) -> None:
    told: list[tuple[str, int, list[int]]] = []

    @contextmanager
    def progress(label: str, total: int, unit: str = "B") -> Iterator[Any]:
        told.append((label + unit, total, []))
        yield told[-1][2].append

    with pytest.raises(KeyboardInterrupt):
        learn(trainable_model(tiny), blocks, NextToken(), KEPT, tmp_path, callbacks=[Killed(3)], progress=progress)
    learn(trainable_model(tiny), blocks, NextToken(), KEPT, tmp_path, resume=True, progress=progress)
    assert told == [("Learning steps", 6, [1] * 3), ("Learning steps", 4, [1] * 4)]


def test_generators_are_left_as_they_were(tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    learn(trainable_model(tiny), blocks, NextToken(), SHORT, tmp_path)
    assert torch.equal(torch.rand(1), expected)


def test_a_package_that_is_absent_is_named(
    tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepack.quant.learning.loop.find_spec", lambda name: None if name == "accelerate" else name)
    with pytest.raises(DependencyError, match=r"needs accelerate: pip install 'edgepack\[train\]'"):
        learn(trainable_model(tiny), blocks, NextToken(), SHORT, tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -1}, {"steps": 1, "batch": 0}, {"steps": 1, "rate": 0.0}, {"steps": 1, "warm_up": 2.0},
        {"steps": 1, "schedule": "sine"}, {"steps": 1, "judgements": 0, "keep_best": True},
        {"steps": 1, "length": 1}, {"steps": 1, "keep_every": -1}, {"steps": 1, "rate": float("nan")},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="learning: "):
        LearningSettings(**wrong)


def test_no_examples_and_unknown_devices_are_refused(tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path) -> None:
    model = trainable_model(tiny)
    with pytest.raises(CalibrationError, match="at least one example"):
        learn(model, [], NextToken(), SHORT, tmp_path)
    with pytest.raises(UsageError, match="learning: device 'nowhere'"):
        learn(model, blocks, NextToken(), LearningSettings(1, device="nowhere"), tmp_path)
