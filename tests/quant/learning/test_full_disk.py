"""A disk that is really full while a model learns: the last good checkpoint stays, and with room the run goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.quant.learning.test_loop import KEPT, assert_same
from transformers import TrainerCallback

from edgepack.errors import ResourceError
from edgepack.quant.learning.answers import Asked, answer_examples
from edgepack.quant.learning.checkpoints import any_kept, checkpoints, step_of
from edgepack.quant.learning.loop import learn
from edgepack.quant.learning.models import trainable_model
from edgepack.quant.learning.objectives import NextToken

if TYPE_CHECKING:
    from pathlib import Path

    from small_disk import SmallDisk

    from edgepack.model import Checkpoint
    from edgepack.quant.learning.text_blocks import TokenBlocks


class Fills(TrainerCallback):
    """Takes the disk's room before a step, but for a share of what a checkpoint takes."""

    def __init__(self, disk: SmallDisk, step: int, share: float) -> None:
        self.disk, self.step, self.share = disk, step, share

    def on_step_begin(self, _arguments: Any, state: Any, *_others: Any, **_keywords: Any) -> None:
        if state.global_step == self.step:
            kept = sum(path.stat().st_size for path in self.disk.path.glob("run/checkpoint-*/*"))
            self.disk.fill(left=int(self.share * kept))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.97])
def test_whatever_part_of_a_checkpoint_has_room_the_one_before_stays_and_the_run_goes_on(
    tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path, small_disk: SmallDisk, share: float
) -> None:
    """Weights, the optimiser's moments and the small files are written one after the other."""
    folder = small_disk.path / "run"
    with pytest.raises(ResourceError) as caught:
        learn(trainable_model(tiny), blocks, NextToken(), KEPT, folder, callbacks=[Fills(small_disk, 3, share)])
    assert str(caught.value) == (
        "learning: the checkpoint after step 4 cannot be written: No space left on device;"
        " that after step 2 is kept for --resume"
    )
    assert caught.value.exit_code == 9
    assert [step_of(each) for each in checkpoints(folder)] == [2]
    assert [path.name for path in folder.iterdir()] == ["checkpoint-2"]
    small_disk.make_room()
    whole, resumed = trainable_model(tiny), trainable_model(tiny)
    unbroken = learn(whole, blocks, NextToken(), KEPT, tmp_path / "whole")
    assert learn(resumed, blocks, NextToken(), KEPT, folder, resume=True).losses == unbroken.losses
    assert_same(resumed, whole)


def test_a_disk_that_is_full_from_the_first_step_leaves_no_checkpoint_and_says_so(
    tiny: Checkpoint, blocks: TokenBlocks, small_disk: SmallDisk
) -> None:
    folder = small_disk.path / "run"
    with pytest.raises(ResourceError, match=r"after step 2 cannot be written: No space left .*; none before it$"):
        learn(trainable_model(tiny), blocks, NextToken(), KEPT, folder, callbacks=[Fills(small_disk, 0, 0.0)])
    assert not any_kept(small_disk.path)


def test_answers_without_room_are_an_error_and_are_given_later(
    tiny: Checkpoint, blocks: TokenBlocks, small_disk: SmallDisk
) -> None:
    teacher = trainable_model(tiny)
    small_disk.fill(left=8192)
    with pytest.raises(ResourceError, match="the disk became full"):
        answer_examples(teacher, blocks, Asked(40), small_disk.path / "said")
    small_disk.make_room()
    assert len(answer_examples(teacher, blocks, Asked(40), small_disk.path / "said")) == len(blocks)
