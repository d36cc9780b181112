"""Ternary fine-tuning: the layer, λ, the identity, exact blocks, the file's logits, the norms of llama.cpp's bitnet."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from references.family_oracle import error_of, llama_logits
from tests.quant.conftest import BOOKS
from torch import nn

from edgepack.errors import RecipeError, UnsupportedModelError, UsageError
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.decided_rows import with_coded_rows
from edgepack.export.gguf_file import write_gguf
from edgepack.export.mapped_model import map_checkpoint
from edgepack.export.plan import PlanOptions, plan_export
from edgepack.gguf.types import GGMLType
from edgepack.model import read_tensor
from edgepack.quant.codecs.ggml.codec import dequantize_rows, quantize_rows
from edgepack.quant.codecs.ternary import Ternary
from edgepack.quant.learning.models import trainable_model
from edgepack.quant.passes.recipe import parse_recipe
from edgepack.quant.passes.registry import find_pass
from edgepack.quant.passes.run import PassRun
from edgepack.quant.passes.ternary.linear import TernaryLinear, rounded_tokens, scales_and_trits, ternary_weight
from edgepack.quant.passes.ternary.sub_norms import check_norms_fit
from edgepack.quant.passes.ternary.training import Strength, q4_rows
from edgepack.quant.tuning.straight_through import in_blocks_of_8_bits
from edgepack.quant.types.choice import Overrides
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.model import Checkpoint
    from edgepack.quant.learning.text_blocks import TokenBlocks
    from edgepack.quant.passes.run import PassOutcome

TOKENS = np.random.default_rng(0).integers(3, 4000, (6, 16))


def random_weight(rows: int, columns: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((rows, columns)).astype(np.float32) * 0.05)


def run_pass(checkpoint: Checkpoint, tokens: Any, folder: Path, text: str = "", **others: Any) -> PassOutcome:
    recipe = parse_recipe(f'[[pass]]\nname = "ternary"\nbatch = 2\n{text}')
    outcome: PassOutcome = find_pass("ternary").run(
        checkpoint, recipe.passes[0].settings, PassRun(folder, tokens=tokens, **others)
    )
    return outcome


@pytest.fixture(scope="module", params=[False, True], ids=["llama", "bitnet"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PassOutcome:
    """The bundled model after three steps, without and with norms."""
    text = f"steps = 3\nnorms = {str(request.param).lower()}\n"
    return run_pass(open_checkpoint(BOOKS), TOKENS, tmp_path_factory.mktemp("ternary"), text)


def test_weights_are_those_of_the_codec_of_the_same_rule() -> None:
    weight = random_weight(6, 600)
    for reach, scale in ((256, "block"), (0, "tensor")):
        codec = Ternary(scale=scale)
        expected = codec.decoder(codec.encode(weight.numpy())).rows(0, 6)
        np.testing.assert_array_equal(ternary_weight(weight, reach).numpy(), expected)


def test_gradients_are_those_of_the_latent_layer_and_strength_goes_from_one_to_the_other() -> None:
    plain = nn.Linear(256, 3)
    layer, inputs = TernaryLinear(plain, 256, rounds_inputs=True), torch.randn(2, 4, 256, requires_grad=True)
    layer.strength = 0.0
    torch.testing.assert_close(layer(inputs), plain(inputs), rtol=0, atol=0)
    layer.strength = 1.0
    expected = rounded_tokens(inputs) @ ternary_weight(plain.weight, 256).T + plain.bias
    torch.testing.assert_close(layer(inputs), expected, rtol=1e-4, atol=1e-5)
    layer(inputs).sum().backward()
    torch.testing.assert_close(layer.weight.grad, rounded_tokens(inputs).sum((0, 1)).detach().expand(3, -1))
    torch.testing.assert_close(inputs.grad, ternary_weight(layer.weight, 256).sum(0).detach().expand(2, 4, -1))
    assert layer.weight is plain.weight


def test_activations_have_255_levels_a_token() -> None:
    inputs = torch.randn(5, 64) * torch.tensor([1e-3, 1.0, 50.0, 1e4, 0.0])[:, None]
    rounded = rounded_tokens(inputs)
    largest = inputs.abs().amax(1, keepdim=True)
    assert ((rounded - inputs).abs() <= largest / 254 * 1.001).all()
    assert (rounded[4] == 0).all()


def test_strength_rises_over_its_share_of_the_steps() -> None:
    strength = Strength([], 0.4)
    assert [strength.at(step, 100) for step in (0, 20, 40, 99)] == [0, 0.5, 1, 1]
    assert Strength([], 0.0).at(0, 100) == 1


def test_no_steps_leave_the_checkpoint(tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path) -> None:
    assert run_pass(tiny, blocks.tokens, tmp_path, "steps = 0\n").checkpoint is tiny


@pytest.mark.parametrize("kind", [GGMLType.TQ1_0, GGMLType.TQ2_0, GGMLType.Q2_0, GGMLType.F16])
def test_every_matrix_is_held_exactly(trained: PassOutcome, kind: GGMLType) -> None:
    source = trained.checkpoint.tensors
    names = [name for name in source.specs if "_proj" in name]
    assert len(names) == 42
    for name in names[:: len(names) // 6]:
        weight = read_tensor(source, name)
        for start in range(0, weight.shape[1], 256):
            assert len(np.unique(np.abs(weight[0, start : start + 256]))) <= 2
        np.testing.assert_array_equal(dequantize_rows(kind, quantize_rows(kind, weight), *weight.shape), weight)


def test_the_files_logits_are_the_trained_models_but_for_activations(trained: PassOutcome, tmp_path: Path) -> None:
    model, ids = trainable_model(trained.checkpoint).eval(), TOKENS[0]

    def logits() -> np.ndarray:
        with torch.no_grad():
            found: np.ndarray = model(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
        return found

    exact = logits()
    for path, module in model.named_modules():
        if path.endswith("_proj"):
            module.register_forward_pre_hook(lambda _module, inputs: (in_blocks_of_8_bits(inputs[0], 256),))
    rounded = logits()
    mapped = map_checkpoint(trained.checkpoint)
    for target in ("gguf-f32", "gguf-tq2", "gguf-tq1"):
        held = Overrides(output=GGMLType.F32, embedding=GGMLType.F32) if target != "gguf-f32" else Overrides()
        plan = plan_export(mapped, find_target(target), PlanOptions(held))
        write_gguf(plan, tmp_path / f"{target}.gguf", threads=1)
        found = llama_logits(tmp_path / f"{target}.gguf", ids)
        if target == "gguf-f32":
            assert error_of(found, exact) < 1e-4
            continue
        assert {info.type for info in plan.infos} == {find_target(target).default, GGMLType.F32}
        assert error_of(found, exact) < 2.5 * error_of(rounded, exact)
        assert error_of(found, rounded) < error_of(rounded, exact)  # nearer to what is rounded as llama.cpp does it


def test_norms_make_it_a_bitnet_with_two_more_tensors_a_block(trained: PassOutcome) -> None:
    config, specs = trained.checkpoint.config, trained.checkpoint.tensors.specs
    added = {name for name in specs if "sub_norm" in name}
    assert (config["model_type"] == "bitnet") == bool(added)
    assert len(added) in (0, 12)
    if added:
        assert trained.figures["first_loss"] < 1  # the norms begin near what magnitudes were


def test_a_killed_run_goes_on_to_the_same_weights(
    tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "steps = 8\nkeep_every = 2\nramp = 0.9\n"
    whole = run_pass(tiny, blocks.tokens, tmp_path / "whole", text, resumable=True)

    def kill(_self: Strength, _arguments: Any, state: Any, *_others: Any, **_keywords: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Strength, "on_pre_optimizer_step", kill)
    with pytest.raises(KeyboardInterrupt):
        run_pass(tiny, blocks.tokens, tmp_path / "run", text, resumable=True)
    monkeypatch.undo()
    resumed = run_pass(tiny, blocks.tokens, tmp_path / "run", text, resumable=True)
    assert resumed.figures == whole.figures
    for name in tiny.tensors.specs:
        found, expected = (read_tensor(each.checkpoint.tensors, name) for each in (resumed, whole))
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_rows_that_are_no_multiple_of_256_are_said_and_held_exactly(
    tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path
) -> None:
    outcome = run_pass(tiny, blocks.tokens, tmp_path, "steps = 1\n")
    assert outcome.coded is not None
    assert len(outcome.notes) == 4  # three, and how many more
    assert "rows of 32 are no multiple of 256" in outcome.notes[0]
    assert "in Q4_0, exactly" in outcome.notes[0]
    for name in tiny.tensors.specs:
        if name.endswith("q_proj.weight"):
            weight = read_tensor(outcome.checkpoint.tensors, name)
            raw = outcome.coded.find(GGMLType.Q4_0, weight)
            assert raw is not None
            np.testing.assert_array_equal(dequantize_rows(GGMLType.Q4_0, raw, *weight.shape), weight)


def test_a_file_takes_the_exact_bytes_of_rows_that_do_not_fit(tmp_path: Path) -> None:
    from edgepack.quant.passes.coded_rows import CodedRows

    weight = random_weight(4, 576)
    scale, trits = scales_and_trits(weight, 256)
    coded = CodedRows()
    np.testing.assert_array_equal(coded.add(GGMLType.Q4_0, q4_rows(scale.numpy(), trits.numpy()), 576), scale * trits)
    assert with_coded_rows  # how a plan takes them is tested with GPTQ


def test_one_scale_a_matrix_fits_too(tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path) -> None:
    outcome = run_pass(tiny, blocks.tokens, tmp_path, 'steps = 1\nscale = "tensor"\nactivations = "float"\n')
    weight = read_tensor(outcome.checkpoint.tensors, "model.layers.0.mlp.down_proj.weight")
    assert len(np.unique(np.abs(weight))) == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "qwen2"}, "expected a model of type 'llama', got 'qwen2'"),
        ({"tie_word_embeddings": False, "hidden_act": "gelu"}, "this model's hidden_act, tie_word_embeddings"),
        ({"head_dim": 64}, "head_dim"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type"),
    ],
)
def test_norms_are_refused_where_the_graph_has_no_place(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    books = open_checkpoint(BOOKS)
    changed = replace(books, config={**books.config, **change})
    with pytest.raises(UnsupportedModelError, match=named):
        check_norms_fit(changed.config)
    with pytest.raises(UnsupportedModelError):
        run_pass(changed, TOKENS, tmp_path, "norms = true\n")
    check_norms_fit(books.config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("relations = 0\nlayer = 3", r"layer: its relations are not compared: relations = 0"),
        ("steps = 4\nkeep_every = 5", "keep_every: expected at most the 4 steps"),
        ("ramp = 1.5", "ramp: expected 0 to 1"),
        ('scale = "row"', "scale: expected 'block' or 'tensor', got 'row'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(f'[[pass]]\nname = "ternary"\n{text}\n')


def test_what_would_undo_it_may_not_come_after() -> None:
    with pytest.raises(RecipeError, match="'prune' comes after pass.0. 'ternary', which has made the weights ternary"):
        parse_recipe('[[pass]]\nname = "ternary"\n[[pass]]\nname = "prune"\nsparsity = 0.5\n')


def test_a_block_that_is_not_there_is_refused(tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a block from 0 to 1, got 7"):
        run_pass(tiny, blocks.tokens, tmp_path, "steps = 1\nlayer = 7\n")
