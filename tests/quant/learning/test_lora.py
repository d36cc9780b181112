"""An adapter begins as the identity, is what merging it gives, and asks only for projections that the model has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from edgepack.errors import CalibrationError, UsageError
from edgepack.quant.learning.labelled import write_labelled
from edgepack.quant.learning.lora import LoraSettings, lora_factors, lora_parameters, projections, with_lora
from edgepack.quant.learning.models import parameter_names, trainable_model
from edgepack.quant.learning.objectives import IGNORED
from edgepack.quant.learning.replay import KEPT, MixedExamples, TextAndReplay
from edgepack.quant.learning.trainer import stacked

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.model import Checkpoint
    from edgepack.quant.learning.text_blocks import TokenBlocks

IDS = torch.tensor([[1, 5, 9, 13, 2]])


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def test_an_adapter_begins_as_the_identity_and_leaves_the_base_frozen(tiny: Checkpoint) -> None:
    plain = trainable_model(tiny)
    before = logits(plain)
    wrapped = with_lora(plain, LoraSettings(rank=4))
    torch.testing.assert_close(logits(wrapped), before, rtol=0, atol=0)
    learning = [name for name, each in wrapped.named_parameters() if each.requires_grad]
    assert learning
    assert all(".lora_" in name for name in learning)
    assert sum(wrapped.get_parameter(name).numel() for name in learning) == lora_parameters(
        trainable_model(tiny), LoraSettings(rank=4)
    )


def test_factors_are_what_the_adapter_adds_to_each_tensor(tiny: Checkpoint) -> None:
    plain = trainable_model(tiny)
    names = parameter_names(plain, tiny)
    wrapped = with_lora(plain, LoraSettings(rank=4, alpha=12.0))
    generator = torch.Generator().manual_seed(0)
    for name, each in wrapped.named_parameters():
        if ".lora_B." in name:
            each.data.copy_(torch.randn(each.shape, generator=generator))
    adapted, found = logits(wrapped), lora_factors(wrapped, names)
    merged = trainable_model(tiny)
    paths = {name: path for path, name in names.items()}
    for name, (down, up) in found.items():
        merged.get_parameter(paths[name]).data.add_(torch.from_numpy(down @ up))
    torch.testing.assert_close(logits(merged), adapted, rtol=1e-4, atol=1e-4)
    assert {name.split(".")[-2] for name in found} == {path.rpartition(".")[2] for path in projections(merged)}


def test_the_seed_decides_how_factors_begin_and_nothing_else_is_drawn(tiny: Checkpoint) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (with_lora(trainable_model(tiny), LoraSettings(rank=2), seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    name = next(name for name, _ in first.named_parameters() if ".lora_A." in name)
    assert torch.equal(first.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_projections_that_the_model_lacks_are_refused_by_name(tiny: Checkpoint) -> None:
    wanted = LoraSettings(modules=("q_proj", "c_attn"))
    with pytest.raises(UsageError, match=r"no projection 'c_attn', only q_proj, k_proj"):
        with_lora(trainable_model(tiny), wanted)
    chosen = with_lora(trainable_model(tiny), LoraSettings(modules=("q_proj", "v_proj")))
    assert {name.split(".")[-4] for name, _ in chosen.named_parameters() if ".lora_A." in name} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"rank": 5000}, {"alpha": 0.0}, {"alpha": float("nan")}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected"):
        LoraSettings(**wrong)  # type: ignore[arg-type]


def test_labelled_examples_are_kept_and_taken_up_again(tmp_path: Path) -> None:
    written = write_labelled([([1, 2, 3], 2), ([4, 5], 1)], tmp_path / "e")
    again = write_labelled(iter(()), tmp_path / "e")
    for found in (written, again):
        assert len(found) == 2
        assert found.longest == 3
        assert found[0]["labels"].tolist() == [IGNORED, IGNORED, 3]
        assert found[1]["input_ids"].tolist() == [4, 5]
    with pytest.raises(CalibrationError, match="at least one example"):
        write_labelled(iter(()), tmp_path / "none")


def test_replay_costs_nothing_while_the_model_says_what_it_said(
    tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path
) -> None:
    from edgepack.quant.learning.answers import Asked, answer_examples
    from edgepack.quant.learning.objectives import NextToken

    model = trainable_model(tiny)
    old = answer_examples(model, blocks, Asked(16), tmp_path / "said")
    new = write_labelled([(list(range(1, 12)), 4)], tmp_path / "new")
    mixed = MixedExamples(new, old)
    assert len(mixed) == 1 + len(blocks)
    batch = stacked([mixed[0], mixed[1]])
    assert batch[KEPT].sum() == 16
    alone = NextToken()(model, stacked([new[0]]))
    torch.testing.assert_close(TextAndReplay(1.0)(model, batch), alone / 2, rtol=1e-3, atol=1e-3)  # two examples
    torch.testing.assert_close(TextAndReplay()(model, stacked([mixed[0]])), alone, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.05 * torch.from_numpy(np.random.default_rng(0).standard_normal(each.shape).astype(np.float32)))
    only_old = stacked([mixed[1], mixed[2]])
    assert float(TextAndReplay(1.0)(model, only_old).detach()) > 1e-3
