"""Smoothing: the function stays, what rounding costs falls, searches against exhaustive ones and against autograd."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from edgepack.gguf.types import GGMLType
from edgepack.quant.calibration import own_labels
from edgepack.quant.calibration.block_samples import InputSample
from edgepack.quant.calibration.blocks import whole_model
from edgepack.quant.calibration.input_samples import InputSampler
from edgepack.quant.passes.awq.folding import FOLDS
from edgepack.quant.passes.run import PassRun
from edgepack.quant.passes.smooth.block import SmoothSettings
from edgepack.quant.passes.smooth.grids import weight_grid
from edgepack.quant.passes.smooth.objective import Sink, objective_of
from edgepack.quant.passes.smooth.order import find_order
from edgepack.quant.passes.smooth.residual import ChangedColumns, reordered
from edgepack.quant.passes.smooth.scales import find_scales
from edgepack.quant.passes.smooth.weights import apply_smooth
from edgepack.quant.refine.activations import activation_block, activation_cost

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.model import Checkpoint

QUICK = SmoothSettings(steps=20, tokens=120)


def eights(checkpoint: Checkpoint) -> dict[str, GGMLType]:
    """Every matrix in Q8_0."""
    return {name: GGMLType.Q8_0 for name, spec in checkpoint.tensors.specs.items() if len(spec.shape) == 2}


def with_outliers(checkpoint: Checkpoint) -> Checkpoint:
    """Some columns of the embedding enlarged: a residual stream whose channels are of very different sizes."""
    name = next(
        n for n in checkpoint.tensors.specs if n.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight"))
    )
    array = checkpoint.tensors.arrays[name].copy()  # type: ignore[attr-defined]
    array[:, [1, 9, 30]] *= 30
    arrays = {**checkpoint.tensors.arrays, name: array}  # type: ignore[attr-defined]
    return replace(checkpoint, tensors=type(checkpoint.tensors)(arrays))  # type: ignore[call-arg]


def logits_of(checkpoint: Checkpoint, tokens: NDArray[np.int64]) -> torch.Tensor:
    with torch.no_grad():
        return whole_model(checkpoint, dtype=torch.float64)(torch.from_numpy(tokens)).logits


@pytest.mark.parametrize("family", sorted(FOLDS))
def test_the_models_function_stays_in_every_family(
    family: str, tiny: Any, tokens: NDArray[np.int64], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepack.quant.passes.smooth.weights.LEAST_GAIN", 0.0)  # however little some families gain
    checkpoint = with_outliers(tiny(family)[0])
    outcome = apply_smooth(checkpoint, QUICK, PassRun(tmp_path, tokens, eights(checkpoint)))
    assert outcome.figures["folds"] > 0
    assert outcome.figures["predicted_after"] < outcome.figures["predicted_before"]
    before, after = (logits_of(each, tokens) for each in (checkpoint, outcome.checkpoint))
    assert float((before - after).abs().max()) < 1e-5 * float(before.abs().max())  # folded weights are float32


@pytest.mark.parametrize("settings", [SmoothSettings(steps=0), SmoothSettings(strength=0.0)])
def test_no_steps_or_no_strength_changes_nothing(
    settings: SmoothSettings, tiny: Any, tokens: NDArray[np.int64], tmp_path: Path
) -> None:
    checkpoint, _ = tiny("llama")
    assert apply_smooth(checkpoint, settings, PassRun(tmp_path, tokens, eights(checkpoint))).checkpoint is checkpoint


def test_types_that_are_floats_want_no_scales(tiny: Any, tokens: NDArray[np.int64], tmp_path: Path) -> None:
    checkpoint, _ = tiny("llama")
    types = dict.fromkeys(eights(checkpoint), GGMLType.F16)
    assert apply_smooth(checkpoint, QUICK, PassRun(tmp_path, tokens, types)).figures["folds_searched"] == 0


def test_a_family_without_a_table_is_told(tiny: Any, tokens: NDArray[np.int64], tmp_path: Path) -> None:
    checkpoint, _ = tiny("falcon")
    outcome = apply_smooth(checkpoint, QUICK, PassRun(tmp_path, tokens, eights(checkpoint)))
    assert outcome.checkpoint is checkpoint
    assert "no folding table for 'falcon'" in outcome.notes[0]


def test_smoothing_twice_gains_next_to_nothing_the_second_time(
    tiny: Any, tokens: NDArray[np.int64], tmp_path: Path
) -> None:
    checkpoint = with_outliers(tiny("qwen2")[0])
    settings = SmoothSettings(tokens=120)
    first = apply_smooth(checkpoint, settings, PassRun(tmp_path / "1", tokens, eights(checkpoint)))
    again = apply_smooth(first.checkpoint, settings, PassRun(tmp_path / "2", tokens, eights(checkpoint)))
    gains = [
        float(each.figures["predicted_after"]) / float(each.figures["predicted_before"]) for each in (first, again)
    ]
    assert gains[0] < 0.8
    assert gains[1] > 0.9


def _same(first: Checkpoint, second: Checkpoint, name: str) -> bool:
    return bool((first.tensors.read_rows(name, 0, 1) == second.tensors.read_rows(name, 0, 1)).all())


def test_a_tied_head_gets_another_order_and_one_of_its_own_does_not(
    tiny: Any, tokens: NDArray[np.int64], tmp_path: Path
) -> None:
    tied, own = (with_outliers(tiny(family)[0]) for family in ("qwen2", "llama"))
    found = [
        apply_smooth(each, QUICK, PassRun(tmp_path / str(index), tokens, eights(each)))
        for index, each in enumerate((tied, own))
    ]
    # One block of 32 channels: there is no other block to exchange with, so the order is looked for and left.
    assert found[0].figures["head_before"] == found[0].figures["head_after"]
    # A head of its own takes scales into the last norm.
    assert found[1].figures["head_after"] < found[1].figures["head_before"]
    names = {name for name in own.tensors.specs if not _same(own, found[1].checkpoint, name)}
    assert {"lm_head.weight", "model.norm.weight"} <= names
    assert "model.embed_tokens.weight" not in names


@pytest.mark.parametrize("family", ["qwen2", "gemma", "gemma2", "gemma3_text"])
def test_another_order_of_the_residual_stream_leaves_the_function(
    family: str, tiny: Any, tokens: NDArray[np.int64], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgepack.quant.passes.smooth import weights
    from edgepack.quant.passes.smooth.head import FoundOrder

    checkpoint = tiny(family)[0]
    order = np.random.default_rng(1).permutation(32)
    monkeypatch.setattr(weights, "head_order", lambda *_arguments: FoundOrder(order, 1.0, 0.5))
    outcome = apply_smooth(checkpoint, QUICK, PassRun(tmp_path, tokens, eights(checkpoint)))
    before, after = (logits_of(each, tokens) for each in (checkpoint, outcome.checkpoint))
    assert float((before - after).abs().max()) < 1e-5 * float(before.abs().max())
    table = next(name for name in checkpoint.tensors.specs if "embed_tokens" in name)
    rows = outcome.checkpoint.tensors.read_rows(table, 2, 5)
    np.testing.assert_array_equal(rows, checkpoint.tensors.read_rows(table, 2, 5)[:, order])


def test_an_order_is_refused_where_another_tower_writes_into_the_stream(
    tiny: Any, tokens: NDArray[np.int64], tmp_path: Path
) -> None:
    checkpoint = tiny("qwen2")[0]
    arrays = {**checkpoint.tensors.arrays, "vision.projector.weight": np.ones((32, 32), np.float32)}
    checkpoint = replace(checkpoint, tensors=type(checkpoint.tensors)(arrays))
    outcome = apply_smooth(checkpoint, QUICK, PassRun(tmp_path, tokens, eights(checkpoint)))
    assert "not all that is outside the blocks is known" in outcome.notes[0]


def test_the_order_found_for_few_channels_is_the_best_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        squares, costs = (torch.rand(7, 6, generator=generator) ** 4 for _ in range(2))

        def cost(order: torch.Tensor, squares: torch.Tensor = squares, costs: torch.Tensor = costs) -> float:
            largest = squares[:, order].unflatten(1, (-1, 3)).amax(-1)
            return float((largest * costs[:, order].unflatten(1, (-1, 3)).sum(-1)).sum())

        found = find_order(squares, costs, 3)
        assert sorted(found.tolist()) == list(range(6))
        assert cost(found) <= cost(torch.arange(6))
        best = min(cost(torch.tensor(each)) for each in permutations(range(6)))
        assert cost(found) <= 1.15 * best  # exchanges one by one may end beside the best


def outlier_sink(kind: GGMLType = GGMLType.Q8_0) -> Sink:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(200, 64, generator=generator)
    inputs[:, [3, 40]] *= 40
    weight = torch.randn(16, 64, generator=generator)
    outputs = torch.randn(200, 16, generator=generator)
    return Sink(weight, kind, InputSample(inputs, outputs @ weight, outputs))


@pytest.mark.parametrize("kind", [GGMLType.Q8_0, GGMLType.Q4_0, GGMLType.Q4_1])
def test_scales_lower_the_exact_cost_of_activations_that_have_outliers(kind: GGMLType) -> None:
    sink = outlier_sink(kind)
    found = find_scales(objective_of([sink]), objective_of([sink]), 64, lambda scales: scales)
    assert found.helps
    scaled = InputSample(sink.sample.inputs / found.scales, sink.sample.gradients * found.scales, sink.sample.outputs)
    before, after = activation_cost(sink.sample, kind), activation_cost(scaled, kind)
    assert after < (0.5 if kind == GGMLType.Q8_0 else 1.0) * before


def test_the_objective_is_what_rounding_really_costs() -> None:
    """ggml's own quantiser for the weights, its rounding for the activations, against the objective's prediction."""
    from edgepack.quant.passes.awq.rounding import rounding_for

    sink = outlier_sink()
    objective, ones = objective_of([sink]), torch.ones(64)
    predicted = [float(term[0].cost(ones)) for term in (objective.activations, objective.weights)]
    rounding = rounding_for(GGMLType.Q8_0)
    assert rounding is not None
    error = rounding(sink.weight, None) - sink.weight
    costs = (sink.sample.outputs.square().T @ sink.sample.inputs.square()) / 200
    assert predicted[0] == pytest.approx(activation_cost(sink.sample, GGMLType.Q8_0), rel=0.15)
    assert predicted[1] == pytest.approx(0.5 * float((error.square() * costs).sum()), rel=0.3)


def test_activations_in_front_of_floats_cost_nothing_and_coarse_blocks_cost_more() -> None:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(50, 512, generator=generator) ** 3
    sample = InputSample(inputs, torch.randn(50, 512, generator=generator), torch.empty(50, 0))
    assert activation_cost(sample, GGMLType.F16) == 0
    assert activation_cost(sample, GGMLType.Q4_K) > activation_cost(sample, GGMLType.Q8_0) > 0
    assert [activation_block(kind) for kind in (GGMLType.BF16, GGMLType.Q5_1, GGMLType.IQ2_XS)] == [0, 32, 256]


def test_every_quantised_type_of_the_exporter_has_a_grid() -> None:
    for kind in GGMLType:
        grid = weight_grid(kind)
        assert (grid is None) == (not kind.is_quantized)
        if grid is not None:
            assert kind.block_size % grid.block == 0
            assert grid.levels > 0


def test_samples_are_what_autograd_says_of_the_whole_model(
    tiny: Any, tokens: NDArray[np.int64], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_labels, "draw_labels", lambda probabilities, _generator: probabilities.argmax(-1))
    checkpoint, _ = tiny("llama")
    sampler = InputSampler(checkpoint, tokens[:3], tmp_path, batch=2, kept=3 * 24)
    head = sampler.head()
    found = {name: sample for block, samples in sampler.blocks() for name, sample in samples.items()}
    model = whole_model(checkpoint)
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def watch(name: str) -> Any:
        def look(_module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
            zeros = torch.zeros_like(output, requires_grad=True)
            seen[name] = (arguments[0].detach(), zeros)
            return output + zeros

        return look

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(watch(f"{name}.weight"))
    with torch.enable_grad():
        logits = model(torch.from_numpy(tokens[:3])).logits.flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, logits.argmax(-1), reduction="sum")
    gradients = torch.autograd.grad(loss, [zeros for _, zeros in seen.values()])
    places = sampler.places
    rows = torch.arange(3)[:, None]
    for (name, (inputs, _)), gradient in zip(seen.items(), gradients, strict=True):
        if name == "lm_head.weight":
            continue
        torch.testing.assert_close(found[name].inputs, inputs[rows, places].flatten(0, 1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[name].outputs, gradient[rows, places].flatten(0, 1), rtol=1e-3, atol=1e-4)
        weight = model.get_parameter(name)
        torch.testing.assert_close(found[name].gradients, found[name].outputs @ weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(head.gradients, head.outputs @ model.lm_head.weight[head.rows], rtol=1e-3, atol=1e-4)
    assert head.share == pytest.approx(1.0)
    assert not list(tmp_path.glob("entering-*"))


def test_reordered_rows_columns_and_vectors() -> None:
    order = np.array([2, 0, 1])
    matrix = np.arange(9, dtype=np.float32).reshape(3, 3)
    assert reordered(matrix, "rows", order)[0].tolist() == [6, 7, 8]
    assert reordered(matrix, "columns", order)[0].tolist() == [2, 0, 1]
    assert reordered(matrix[0], "columns", order).tolist() == [2, 0, 1]
    assert reordered(matrix, "none", order) is matrix


def test_reordered_columns_change_only_the_named_tensors(tiny: Any) -> None:
    checkpoint, _ = tiny("llama")
    names = [name for name, spec in checkpoint.tensors.specs.items() if spec.columns == 32]
    order = np.arange(32)[::-1].copy()
    source = ChangedColumns(checkpoint.tensors, {names[0]: order}, {})
    plain = [checkpoint.tensors.read_rows(name, 0, 1) for name in names[:2]]
    np.testing.assert_array_equal(source.read_rows(names[0], 0, 1), plain[0][:, ::-1])
    np.testing.assert_array_equal(source.read_rows(names[1], 0, 1), plain[1])
    assert source.specs == checkpoint.tensors.specs


def test_a_gain_that_is_too_little_to_be_sure_of_leaves_the_checkpoint(
    tiny: Any, tokens: NDArray[np.int64], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = with_outliers(tiny("llama")[0])
    run = PassRun(tmp_path, tokens, eights(checkpoint))
    gained = apply_smooth(checkpoint, QUICK, run)
    before, after = gained.figures["predicted_before"], gained.figures["predicted_after"]
    assert isinstance(before, float)
    assert isinstance(after, float)
    assert after < 0.9 * before
    monkeypatch.setattr("edgepack.quant.passes.smooth.weights.LEAST_GAIN", 1 - after / before + 0.3)
    left = apply_smooth(checkpoint, QUICK, run)
    assert left.checkpoint is checkpoint
    assert left.figures["folds"] == 0
    assert "nothing was done" in left.notes[-1]
