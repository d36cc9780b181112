"""Examples of unlike lengths: what a step computes, what it costs in parts, the order over time, a run that goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tests.quant.learning.test_loop import Killed, assert_same
from torch.utils.data import Subset

from edgepack.quant.learning.answers import Asked, answer_examples
from edgepack.quant.learning.checkpoints import checkpoints, step_of
from edgepack.quant.learning.labelled import LabelledExamples, write_labelled
from edgepack.quant.learning.lengths import LikeLengths, heaviest, lengths_of
from edgepack.quant.learning.loop import learn
from edgepack.quant.learning.memory import footprint
from edgepack.quant.learning.models import trainable_model
from edgepack.quant.learning.objectives import NextToken
from edgepack.quant.learning.replay import KEPT, MixedExamples, TextAndReplay
from edgepack.quant.learning.settings import LearningSettings

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.model import Checkpoint
    from edgepack.quant.learning.text_blocks import TokenBlocks

LONG = 192


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> LabelledExamples:
    """22 examples of 3 to 24 tokens, of which the last ones are learnt."""
    chance = np.random.default_rng(0)
    lengths = chance.permutation(np.arange(3, 25))
    examples = [(list((np.arange(n) + chance.integers(40)) % 40), int(chance.integers(1, n))) for n in lengths]
    return write_labelled(examples, tmp_path_factory.mktemp("ragged"))


def mixed_lengths() -> list[int]:
    """Of a canon: three answers and sentences to each passage."""
    chance = np.random.default_rng(0)
    return [int(chance.integers(6, 40)) if n % 4 else LONG for n in range(400)]


def padded_share(order: list[int], lengths: list[int], batch: int) -> float:
    """Positions that hold no token, of all that a step computes."""
    batches = np.array(lengths)[order].reshape(-1, batch)
    return 1 - float(batches.sum() / (batches.max(1).sum() * batch))


@pytest.mark.parametrize("batch", [2, 8])
def test_hardly_a_position_is_filled_up(batch: int) -> None:
    lengths = mixed_lengths()
    assert padded_share(list(range(len(lengths))), lengths, batch) > 0.3
    assert padded_share(list(LikeLengths(lengths, batch, 0)), lengths, batch) < 0.05


def test_an_epoch_has_every_example_once_and_seed_and_epoch_decide_the_order() -> None:
    lengths = mixed_lengths()

    def order(seed: int, epoch: int) -> list[int]:
        sampler = LikeLengths(lengths, 4, seed)
        sampler.set_epoch(epoch)
        torch.manual_seed(epoch + 17)  # what else is drawn has no part in it
        return list(sampler)

    assert sorted(order(0, 0)) == list(range(len(lengths)))
    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed, epoch in ((0, 0), (0, 1), (5, 0), (5, 1))}) == 4


def test_long_examples_come_all_over_an_epoch() -> None:
    lengths = mixed_lengths()
    for seed in range(5):
        long = np.array(lengths)[list(LikeLengths(lengths, 2, seed))] == LONG
        shares = [float(part.mean()) for part in np.split(long, 8)]
        assert min(shares) > 0
        assert max(shares) < 0.6


def test_datasets_know_their_lengths_and_what_costs_most(
    tiny: Checkpoint, blocks: TokenBlocks, ragged: LabelledExamples, tmp_path: Path
) -> None:
    read = [len(ragged[n]["input_ids"]) for n in range(len(ragged))]
    assert lengths_of(ragged).tolist() == read
    assert lengths_of(Subset(ragged, [4, 2])).tolist() == [read[4], read[2]]
    assert lengths_of([{"input_ids": torch.arange(n)} for n in (5, 2)]).tolist() == [5, 2]
    old = answer_examples(trainable_model(tiny), blocks, Asked(4), tmp_path).part(np.array([3, 1]))
    mixed = MixedExamples(ragged, old)
    assert lengths_of(mixed).tolist() == [*read, 16, 16]
    assert len(heaviest(ragged)["input_ids"]) == len(heaviest(mixed)["input_ids"]) == 24
    assert heaviest(mixed)[KEPT].all()
    assert set(heaviest(mixed)) == set(mixed[0])


def test_the_steps_of_a_run_compute_little_more_than_their_tokens(
    tiny: Checkpoint, ragged: LabelledExamples, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []

    class Counted(NextToken):
        def __call__(self, model: Any, inputs: Any) -> torch.Tensor:
            seen.append(tuple(inputs["input_ids"].shape))
            return super().__call__(model, inputs)

    learn(trainable_model(tiny), ragged, Counted(), LearningSettings(11, batch=2, judgements=0), tmp_path)
    tokens = int(lengths_of(ragged).sum())
    assert tokens <= sum(batch * length for batch, length in seen) < 1.15 * tokens


@pytest.mark.parametrize("parts", [1, 2])
def test_a_run_killed_in_a_later_epoch_gives_the_same_curve_and_weights(
    tiny: Checkpoint, ragged: LabelledExamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    """5 steps an epoch; killed in the second, behind a checkpoint in the middle of it."""
    monkeypatch.setattr("edgepack.quant.learning.memory.resident", lambda _device: 0)
    settings = LearningSettings(12, batch=4, length=24, rate=1e-2, keep_every=2, seed=3)
    if parts > 1:
        limit = footprint(trainable_model(tiny), heaviest(ragged), NextToken(), 24).peak(2, recomputes=True)
        settings = replace(settings, max_memory=limit)
    whole = trainable_model(tiny)
    unbroken = learn(whole, ragged, NextToken(), settings, tmp_path / "whole")
    assert unbroken.plan is not None
    assert unbroken.plan.accumulation == parts
    with pytest.raises(KeyboardInterrupt):
        learn(trainable_model(tiny), ragged, NextToken(), settings, tmp_path / "run", callbacks=[Killed(9)])
    assert [step_of(each) for each in checkpoints(tmp_path / "run")] == [8]
    resumed = trainable_model(tiny)
    gone_on = learn(resumed, ragged, NextToken(), settings, tmp_path / "run", resume=True)
    assert gone_on.losses == unbroken.losses
    assert_same(resumed, whole)


def test_a_batch_in_parts_costs_what_it_costs_at_once_though_lengths_and_labels_differ(
    tiny: Checkpoint, blocks: TokenBlocks, ragged: LabelledExamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepack.quant.learning.memory.resident", lambda _device: 0)
    mixed = MixedExamples(ragged, answer_examples(trainable_model(tiny), blocks, Asked(8), tmp_path / "said"))
    objective, losses = TextAndReplay(0.5), {}
    for size in (4, 1):
        limit = footprint(trainable_model(tiny), heaviest(mixed), objective, 24).peak(size, recomputes=True)
        settings = LearningSettings(6, batch=4, length=24, rate=1e-2, max_memory=limit)
        learnt = learn(trainable_model(tiny), mixed, objective, settings, tmp_path / f"{size}")
        assert learnt.plan is not None
        assert learnt.plan.batch == size
        losses[size] = [loss for _, loss in learnt.losses]
    np.testing.assert_allclose(losses[1], losses[4], rtol=1e-5)
