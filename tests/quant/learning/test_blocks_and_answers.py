"""Blocks of text, a teacher's answers on disk, and what a student is measured by."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers

from edgepack.errors import CalibrationError, NumericError, UnsupportedModelError, UsageError
from edgepack.model import read_tensor
from edgepack.quant.learning.answers import Asked, answer_examples
from edgepack.quant.learning.loop import learn
from edgepack.quant.learning.memory import footprint
from edgepack.quant.learning.models import kept_checkpoint, live_checkpoint, trainable_model
from edgepack.quant.learning.objectives import Distillation, NextToken, relation_divergence
from edgepack.quant.learning.settings import LearningSettings
from edgepack.quant.learning.text_blocks import TokenBlocks, text_pieces, write_blocks
from edgepack.quant.learning.trainer import stacked

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.model import Checkpoint


class Letters:
    """A tokenizer with a token a character, and 0 for the beginning."""

    bos_token_id = 0

    def __init__(self) -> None:
        self.longest = 0

    def __call__(self, text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
        self.longest = max(self.longest, len(text))
        return {"input_ids": [0] * add_special_tokens + [ord(each) for each in text]}


def test_blocks_hold_all_of_a_text_and_no_more_than_a_piece_is_read_at_once(tmp_path: Path) -> None:
    text = "".join(f"line {number}\n" for number in range(1000))
    (tmp_path / "t.txt").write_text(text)
    tokenizer = Letters()
    blocks = write_blocks(text_pieces(tmp_path / "t.txt", 100), tokenizer, 16, tmp_path / "blocks")
    assert tokenizer.longest < 120
    assert blocks.length == 16
    assert all(int(blocks[n]["input_ids"][0]) == 0 for n in range(len(blocks)))
    whole = "".join(chr(each) for n in range(len(blocks)) for each in blocks[n]["input_ids"][1:])
    assert text.startswith(whole)
    assert len(text) - len(whole) < 15
    again = write_blocks(iter(()), tokenizer, 16, tmp_path / "blocks")  # taken up, not made again
    assert len(again) == len(blocks)


def test_text_that_cannot_be_read_or_is_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        list(text_pieces(tmp_path / "absent.txt"))
    (tmp_path / "bad.txt").write_bytes(b"good\xff")
    with pytest.raises(UsageError, match="expected UTF-8 text, a byte is 0xff"):
        list(text_pieces(tmp_path / "bad.txt"))
    with pytest.raises(CalibrationError, match="got 5 tokens of text, one block needs 15"):
        write_blocks(["short"], Letters(), 16, tmp_path / "blocks")
    with pytest.raises(CalibrationError, match="at least 2 blocks"):
        TokenBlocks(np.zeros((1, 4), np.int64)).split(0.1)


def test_held_out_blocks_are_none_of_those_learnt_from() -> None:
    blocks = TokenBlocks(np.arange(80).reshape(20, 4))
    learnt, held_out = blocks.split(0.2)
    first = [[int(part[n]["input_ids"][0]) for n in range(len(part))] for part in (learnt, held_out)]
    assert len(first[1]) == 4
    assert sorted(first[0] + first[1]) == list(range(0, 80, 4))


def test_a_teacher_that_is_its_own_student_costs_nothing_but_half_precision(
    tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path
) -> None:
    teacher = trainable_model(tiny)
    asked = Asked(40, relations=1, hidden=(0, 1))
    examples = answer_examples(teacher, blocks, asked, tmp_path)
    batch = stacked([examples[0], examples[3]])
    loss = Distillation(asked, relations=1.0, hidden=1.0)(teacher, batch)
    assert abs(float(loss.detach())) < 2e-3
    with torch.no_grad():
        teacher.model.layers[0].mlp.up_proj.weight.add_(0.3)
    assert float(Distillation(asked, relations=1.0, hidden=1.0)(teacher, batch).detach()) > 10 * abs(
        float(loss.detach())
    )


def test_answers_are_those_of_the_whole_distribution(tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path) -> None:
    teacher, student = trainable_model(tiny), trainable_model(tiny)
    with torch.no_grad():
        for each in student.parameters():
            each.add_(0.05 * torch.randn(each.shape, generator=torch.Generator().manual_seed(3)))
    examples = answer_examples(teacher, blocks, Asked(40), tmp_path)
    batch = stacked([examples[n] for n in range(4)])
    with torch.no_grad():
        ours = student(input_ids=batch["input_ids"]).logits.log_softmax(-1)
        theirs = teacher(input_ids=batch["input_ids"]).logits.log_softmax(-1)
    expected = (theirs.exp() * (theirs - ours)).sum(-1).mean()
    loss = Distillation()(student, batch)
    torch.testing.assert_close(loss.detach(), expected, rtol=0, atol=1e-3)  # half precision of logarithms near -4


def test_interrupted_answers_are_taken_up(tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path) -> None:
    many = TokenBlocks(np.tile(blocks.tokens, (3, 1)))
    teacher, asked = trainable_model(tiny), Asked(4)
    whole = answer_examples(teacher, many, asked, tmp_path / "whole")

    class Stops:
        def __len__(self) -> int:
            return len(many)

        def __getitem__(self, index: int) -> Any:
            if index == 40:
                raise KeyboardInterrupt
            return many[index]

    with pytest.raises(KeyboardInterrupt):
        answer_examples(teacher, Stops(), asked, tmp_path / "run")
    begun: list[int] = []

    class Counts(Stops):
        def __getitem__(self, index: int) -> Any:
            begun.append(index)
            return many[index]

    found = answer_examples(teacher, Counts(), asked, tmp_path / "run")
    assert begun == list(range(32, 54))
    for key, array in whole.arrays.items():
        np.testing.assert_array_equal(found.arrays[key], array)


def test_relations_are_those_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(2, 5, 6, generator=generator) for _ in range(2))
    total = 0.0
    for batch in range(2):
        for head in range(3):
            a, b = (each[batch, :, 2 * head : 2 * head + 2] for each in (one, two))
            p, q = ((each @ each.T / 2**0.5).softmax(-1) for each in (a, b))
            total += float((p * (p / q).log()).sum())
    assert float(relation_divergence(one, two, 3)) == pytest.approx(total / (2 * 3 * 5), rel=1e-5)


def test_layers_are_compared_where_activations_are_recomputed_too(
    tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepack.quant.learning.memory.resident", lambda _device: 0)
    asked = Asked(8, relations=1, hidden=(0,))
    examples = answer_examples(trainable_model(tiny), blocks, asked, tmp_path / "answers")
    objective, settings = Distillation(asked, relations=1.0, hidden=1.0), LearningSettings(4, batch=2, rate=1e-2)
    losses = []
    for limit in (10**12, footprint(trainable_model(tiny), examples[0], objective, 16).peak(2, recomputes=True)):
        bounded, student = replace(settings, length=16, max_memory=limit), trainable_model(tiny)
        learnt = learn(student, examples, objective, bounded, tmp_path / f"{limit}")
        assert learnt.plan is not None
        assert learnt.plan.recomputes == (limit < 10**12)
        losses.append([loss for _, loss in learnt.losses])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_a_teacher_that_is_not_finite_and_layers_that_are_not_there_are_refused(
    tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path
) -> None:
    teacher = trainable_model(tiny)
    with pytest.raises(UsageError, match="expected a block from 0 to 1, got 2"):
        answer_examples(teacher, blocks, Asked(relations=2), tmp_path / "a")
    with torch.no_grad():
        teacher.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NumericError, match="the original's logits are not finite in sequence 0"):
        answer_examples(teacher, blocks, Asked(), tmp_path / "b")
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=16, vocab_size=40)
    joined = transformers.GPT2LMHeadModel(config)
    with pytest.raises(UnsupportedModelError, match="attention relations need q_proj"):
        answer_examples(joined, blocks, Asked(relations=0), tmp_path / "c")


def test_shorter_examples_are_filled_up_and_their_filling_is_not_learnt(tiny: Checkpoint) -> None:
    model = trainable_model(tiny)
    long, short = torch.arange(9), torch.arange(4)
    alone = NextToken()(model, stacked([{"input_ids": short, "labels": short}]))
    both = stacked([{"input_ids": each, "labels": each} for each in (long, short)])
    assert both["labels"][1].tolist() == [0, 1, 2, 3, *[-100] * 5]
    padded = {key: value[1:] for key, value in both.items()}
    torch.testing.assert_close(NextToken()(model, padded), alone)


def test_a_model_gives_its_weights_back_under_the_checkpoints_names(tiny: Checkpoint, tmp_path: Path) -> None:
    model = trainable_model(tiny)
    assert kept_checkpoint(tiny, model, tmp_path / "same").tensors.replaced == {}  # type: ignore[attr-defined]
    name = "model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(name)[3] += 1
    live, kept = live_checkpoint(tiny, model), kept_checkpoint(tiny, model, tmp_path / "changed")
    for found in (live, kept):
        np.testing.assert_array_equal(found.tensors.read_rows(name, 2, 5), model.get_parameter(name)[2:5].detach())
    assert list(kept.tensors.replaced) == [name]  # type: ignore[attr-defined]
    expected = read_tensor(tiny.tensors, name)
    expected[3] += 1
    np.testing.assert_array_equal(read_tensor(kept.tensors, name), expected)
