"""AWQ: folds keep the function, searches against exhaustive ones, families without a table are told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgepack.errors import UsageError
from edgepack.gguf.types import GGMLType
from edgepack.quant.calibration.blocks import BlockwiseModel, is_linear, whole_model
from edgepack.quant.calibration.statistics import LinearStatistics, MomentAccumulator
from edgepack.quant.calibration.sweep import BlockVisit, sweep
from edgepack.quant.codecs.ggml.codec import dequantize_rows, quantize_rows
from edgepack.quant.passes.awq.clipping import clip_groups
from edgepack.quant.passes.awq.folding import FOLDS, Fold, HeadCounts, apply_fold, gather_heads, spread_over_heads
from edgepack.quant.passes.awq.outputs import LinearSample, sample_block, split_sequences
from edgepack.quant.passes.awq.rounding import (
    LADDER,
    GGMLRounding,
    IntegerRounding,
    rounded_activations,
    rounding_for,
)
from edgepack.quant.passes.awq.scales import FoldSearch, FoundScales, Sink, candidate_scales, weight_size
from edgepack.quant.passes.awq.weights import AwqSettings, apply_awq
from edgepack.quant.passes.run import PassRun

if TYPE_CHECKING:
    from numpy.typing import NDArray

AUTOAWQ = Path(__file__).resolve().parents[1] / "golden/awq/autoawq-0.2.9.safetensors"


def source_channels(block: torch.nn.Module, fold: Fold, heads: HeadCounts) -> int:
    """How many scales a fold has."""
    columns = block.get_submodule(fold.sinks[0]).weight.shape
    inputs = int(columns[0] if type(block.get_submodule(fold.sinks[0])).__name__ == "Conv1D" else columns[1])
    return inputs // heads.query * heads.key_value if fold.per_head else inputs


@pytest.fixture
def all_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma's norm multiplies with its weight in float32 whatever the model's type: here `float()` is double."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.mark.usefixtures("all_double")
@pytest.mark.parametrize("family", sorted(FOLDS))
def test_every_fold_of_every_table_leaves_the_logits_unchanged(
    family: str, tiny: Any, tokens: NDArray[np.int64]
) -> None:
    checkpoint, _ = tiny(family)
    model = whole_model(checkpoint, dtype=torch.float64)
    ids, heads = torch.from_numpy(tokens), HeadCounts.of(checkpoint.config)
    expected = model(ids).logits
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    before = [parameter.detach().clone() for parameter in blocks.parameters()]
    torch.manual_seed(0)
    for block in blocks:
        for fold in FOLDS[family]:
            apply_fold(block, fold, torch.randn(source_channels(block, fold, heads)).exp().double(), heads)
    found = model(ids).logits
    assert any(not torch.equal(old, new) for old, new in zip(before, blocks.parameters(), strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("all_double")
@pytest.mark.parametrize("family", sorted(FOLDS))
def test_a_fold_names_every_reader_of_its_source(family: str, tiny: Any) -> None:
    """A scale on one fold alone must also leave the function: no sink may be missing."""
    checkpoint, _ = tiny(family)
    heads = HeadCounts.of(checkpoint.config)
    for fold in FOLDS[family]:
        model = whole_model(checkpoint, dtype=torch.float64)
        ids = torch.arange(3, 19)[None]
        expected = model(ids).logits
        block = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))[0]
        apply_fold(block, fold, torch.linspace(0.5, 2, source_channels(block, fold, heads)).double(), heads)
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-9, atol=1e-9)


def test_grouped_heads_share_the_scales_of_their_value_head() -> None:
    heads = HeadCounts(4, 2)
    scales = torch.tensor([1.0, 2.0, 3.0, 4.0])
    spread = spread_over_heads(scales, heads)
    assert spread.tolist() == [1, 2, 1, 2, 3, 4, 3, 4]
    torch.testing.assert_close(gather_heads(spread, heads), scales)
    assert gather_heads(torch.tensor([1.0, 4.0, 1.0, 1.0]), HeadCounts(2, 1)).tolist() == pytest.approx([1.0, 2.0])


class Halves:
    """A rounding so coarse that scales matter: to multiples of a quarter of the row's largest."""

    group = 8
    activation_block = 0

    def __call__(self, weight: torch.Tensor, _importance: torch.Tensor | None) -> torch.Tensor:
        step = weight.abs().amax(1, keepdim=True) / 2
        return (weight / step).round() * step


def sinks_of(visit: BlockVisit, fold: Fold, sequences: int) -> list[Sink]:
    names = [visit.block.names[f"{path}.weight"] for path in fold.sinks]
    statistics, _ = visit.observe(names, False)
    samples = sample_block(visit, [fold], sequences)
    return [
        Sink(visit.block.weight(name), Halves(), statistics[name], False, samples[path])
        for name, path in zip(names, fold.sinks, strict=True)
    ]


def exhaustive_losses(visit: BlockVisit, fold: Fold, module: str, candidates: list[torch.Tensor]) -> list[float]:
    """Error of `module`'s outputs for each scale, by running the whole block with rounded weights."""
    names = [visit.block.names[f"{path}.weight"] for path in fold.sinks]
    originals = [visit.block.weight(name).clone() for name in names]

    def outputs() -> torch.Tensor:
        seen: list[torch.Tensor] = []

        def keep(_module: Any, _arguments: Any, output: Any) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        handle = visit.block.module.get_submodule(module).register_forward_hook(keep)
        visit.run(0, len(visit.inputs))
        handle.remove()
        return seen[0]

    exact, losses = outputs(), []
    for scales in candidates:
        for name, weight in zip(names, originals, strict=True):
            visit.block.set_weight(name, Halves()(weight * scales, None) / scales)
        losses.append(float((outputs() - exact).square().sum(-1).mean()))
        for name, weight in zip(names, originals, strict=True):
            visit.block.set_weight(name, weight)
    return losses


def candidates_of(sinks: list[Sink]) -> list[torch.Tensor]:
    mean_abs = torch.from_numpy(sinks[0].statistics.mean_abs)
    return [torch.ones_like(mean_abs), *candidate_scales(mean_abs, weight_size([sink.weight for sink in sinks]))]


def test_the_search_finds_what_an_exhaustive_one_finds(tiny: Any, tokens: NDArray[np.int64]) -> None:
    """Where a linear's own outputs count and all of them are sampled, the error is that of a run of the block."""
    checkpoint, _ = tiny("llama")
    fold = FOLDS["llama"][3]
    helped = []

    def look(visit: BlockVisit) -> None:
        sinks = sinks_of(visit, fold, len(tokens))
        found = FoldSearch(fold, sinks, HeadCounts.of(checkpoint.config)).best()
        candidates = candidates_of(sinks)
        losses = exhaustive_losses(visit, fold, fold.sinks[0], candidates)
        torch.testing.assert_close(found.scales, candidates[int(np.argmin(losses))])
        assert found.error == pytest.approx(min(losses), rel=1e-4)
        assert found.plain == pytest.approx(losses[0], rel=1e-4)
        assert found.tried == len(candidates)
        helped.append(found.helps)

    sweep(BlockwiseModel(checkpoint), torch.from_numpy(tokens), look)
    assert any(helped)


@pytest.mark.parametrize("number", [0, 2])
def test_what_sensitivities_choose_is_good_for_the_parents_outputs(
    number: int, tiny: Any, tokens: NDArray[np.int64]
) -> None:
    """The errors of rounding are too large here for a linear model to be exact; the choice must hold all the same."""
    checkpoint, _ = tiny("llama")
    fold = FOLDS["llama"][number]
    ratios = []

    def look(visit: BlockVisit) -> None:
        sinks = sinks_of(visit, fold, len(tokens))
        found = FoldSearch(fold, sinks, HeadCounts.of(checkpoint.config)).best()
        candidates = candidates_of(sinks)
        losses = exhaustive_losses(visit, fold, fold.parent, candidates)
        chosen = next(n for n, scales in enumerate(candidates) if torch.equal(scales, found.scales))
        assert losses[chosen] <= losses[0]
        ratios.append(losses[chosen] / min(losses))

    sweep(BlockwiseModel(checkpoint), torch.from_numpy(tokens), look)
    assert np.mean(ratios) < 1.25


def test_no_scale_at_all_is_among_what_is_tried(
    tiny: Any, tokens: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, _ = tiny("llama")
    fold = FOLDS["llama"][1]
    seen: list[FoundScales] = []

    def look(visit: BlockVisit) -> None:
        search = FoldSearch(fold, sinks_of(visit, fold, 2), HeadCounts.of(checkpoint.config))
        monkeypatch.setattr(search, "error", lambda scales: float((scales - 1).abs().max()))
        seen.append(search.best())

    sweep(BlockwiseModel(checkpoint), torch.from_numpy(tokens), look)
    for found in seen:
        assert not found.helps
        assert torch.equal(found.scales, torch.ones_like(found.scales))


def test_divided_inputs_have_the_divided_statistics() -> None:
    inputs, scales = torch.randn(64, 6), torch.rand(6) + 0.5

    def moments(values: torch.Tensor) -> LinearStatistics:
        accumulator = MomentAccumulator(True)
        accumulator.add(values)
        return accumulator.result("x")

    found, expected = moments(inputs).divided(scales.numpy()), moments(inputs / scales)
    for name in ("mean_abs", "mean_square", "hessian"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("available", range(1, 12))
def test_what_is_held_back_is_never_searched(available: int) -> None:
    for wanted in range(1, 14):
        (start, stop), (held_start, held_stop) = split_sequences(available, wanted)
        assert 0 == start < stop <= min(wanted, available)
        assert held_start < held_stop == available
        assert stop <= held_start or available == 1


@pytest.mark.parametrize(("kind", "block"), [(GGMLType.Q4_K, 256), (GGMLType.IQ4_XS, 256), (GGMLType.Q4_0, 32)])
def test_activations_are_rounded_as_ggml_rounds_them(kind: GGMLType, block: int) -> None:
    """Q8_0 is the same rounding in blocks of 32, but for its float16 scale; one block has no neighbours."""
    inputs = torch.randn(3, 2 * block, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 2 * block)
    assert GGMLRounding(kind).activation_block == block
    rounded = rounded_activations(inputs, block)
    step = inputs.unflatten(-1, (-1, block)).abs().amax(-1, keepdim=True) / 127
    assert ((rounded - inputs).unflatten(-1, (-1, block)).abs() <= step * 0.5001).all()
    torch.testing.assert_close(rounded_activations(rounded, block), rounded)
    if block == 32:
        blocks = quantize_rows(GGMLType.Q8_0, inputs.numpy(), quantizer="ggml")
        expected = torch.from_numpy(dequantize_rows(GGMLType.Q8_0, blocks, *inputs.shape))
        torch.testing.assert_close(rounded, expected, rtol=1e-3, atol=1e-30)


def test_a_short_last_block_of_activations_has_its_own_scale() -> None:
    inputs = torch.tensor([[100.0] * 32 + [1.0, 0.5]])
    torch.testing.assert_close(rounded_activations(inputs, 32)[0, 32:], torch.tensor([1.0, 64 / 127]))


def test_clipping_finds_what_trying_every_share_of_one_group_finds() -> None:
    torch.manual_seed(1)
    weight, inputs = torch.randn(3, 16), torch.randn(50, 16)
    weight[0, 3] = 6.0
    hessian, rounding = inputs.T @ inputs / 50, IntegerRounding(2, 8)
    clipped = clip_groups(weight, hessian, rounding, None)
    for row in range(3):
        for at in (0, 8):
            group = weight[row : row + 1, at : at + 8]
            losses = {}
            for step in range(10):
                limit = float(group.abs().max()) * (1 - step / 20)
                tried = group.clamp(-limit, limit)
                error = (rounding(tried) - group) @ inputs[:, at : at + 8].T
                losses[step] = (float(error.square().mean()), tried)
            best = min(losses.values(), key=lambda pair: pair[0])[1]
            torch.testing.assert_close(clipped[row : row + 1, at : at + 8], best)


def test_the_importance_moves_with_the_scales() -> None:
    seen = []

    class Spy:
        group = 4
        activation_block = 0

        def __call__(self, weight: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
            seen.append(importance)
            return weight

    statistics = LinearStatistics(1, np.ones(4, np.float32), np.full(4, 8.0, np.float32), np.eye(4, dtype=np.float32))
    scales = torch.tensor([1.0, 2.0, 4.0, 1.0])
    weight = torch.randn(3, 4)
    sample = LinearSample(torch.ones(1, 4), None, torch.arange(3))
    torch.testing.assert_close(Sink(weight, Spy(), statistics, True, sample).rounded(weight, scales), weight)
    assert seen[0].tolist() == [8.0, 2.0, 0.5, 8.0]


def test_search_bits_climb_the_ladder_and_stop_at_its_ends() -> None:
    assert rounding_for(GGMLType.Q3_K, 1) == GGMLRounding(GGMLType.Q4_K)
    assert rounding_for(GGMLType.Q8_0, 3) == GGMLRounding(LADDER[-1])
    assert rounding_for(GGMLType.Q2_K, -1) == GGMLRounding(LADDER[0])
    assert rounding_for(GGMLType.F16) is None


def all_types(checkpoint: Any, kind: GGMLType) -> dict[str, GGMLType]:
    return {name: kind for name, spec in checkpoint.tensors.specs.items() if len(spec.shape) == 2}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma", "phi3"])
def test_the_models_function_stays_and_its_rounding_improves(
    family: str, tiny: Any, tokens: NDArray[np.int64], tmp_path: Path
) -> None:
    checkpoint, model = tiny(family)
    run = PassRun(tmp_path, tokens, all_types(checkpoint, GGMLType.Q4_0), with_importance=True)
    outcome = apply_awq(checkpoint, AwqSettings(clip=False), run)
    ids = torch.from_numpy(tokens)
    torch.testing.assert_close(whole_model(outcome.checkpoint)(ids).logits, model(ids).logits, rtol=1e-2, atol=1e-2)
    assert outcome.figures["mean_error_ratio"] < 1
    assert not outcome.notes


def test_a_family_without_a_table_is_clipped_and_told(tiny: Any, tokens: NDArray[np.int64], tmp_path: Path) -> None:
    checkpoint, _ = tiny("falcon")
    outcome = apply_awq(checkpoint, AwqSettings(), PassRun(tmp_path, tokens, all_types(checkpoint, GGMLType.Q4_0)))
    assert outcome.notes == ("awq: no folding table for 'falcon': scales were skipped, clipping was done",)
    assert outcome.figures["clipped_tensors"] > 0


def test_what_the_file_does_not_round_is_not_touched(tiny: Any, tokens: NDArray[np.int64], tmp_path: Path) -> None:
    checkpoint, _ = tiny("llama")
    outcome = apply_awq(checkpoint, AwqSettings(), PassRun(tmp_path, tokens, all_types(checkpoint, GGMLType.F16)))
    assert outcome.figures == {"folds": 0, "clipped_tensors": 0}


def test_integer_rounding_is_its_own_fixed_point_and_reaches_both_ends() -> None:
    weight = torch.randn(4, 256)
    rounding = IntegerRounding(4, 128)
    scales, zeros, integers = rounding.quantise(weight)
    assert integers.amin() == 0
    assert integers.amax() == 15
    assert scales.shape == zeros.shape == (4, 2)
    once = rounding(weight)
    assert (once - weight).abs().max() <= scales.max() * 0.51
    torch.testing.assert_close(rounding(once), once, rtol=1e-3, atol=1e-3)


def test_groups_that_do_not_fill_a_row_are_refused() -> None:
    with pytest.raises(UsageError, match="a divisor of a row's 172 weights, got 128"):
        IntegerRounding(4, 128)(torch.ones(2, 172))


def test_integers_are_searched_for_where_the_recipe_says_so(
    tiny: Any, tokens: NDArray[np.int64], tmp_path: Path
) -> None:
    """Files in float16 round nothing, but integers do."""
    checkpoint, _ = tiny("llama")
    run = PassRun(tmp_path, tokens, all_types(checkpoint, GGMLType.F16))
    outcome = apply_awq(checkpoint, AwqSettings(integer_bits=3, group=16), run)
    assert outcome.figures["folds_searched"] == 4 * 3


@pytest.mark.parametrize("name", ["wide", "narrow"])
def test_the_integer_rounding_is_autoawqs_bit_for_bit(name: str) -> None:
    """The golden file was made by AutoAWQ's own functions (tools/make_golden_awq.py)."""
    golden = load_file(AUTOAWQ)
    weight, rounding = golden[f"{name}.original"], IntegerRounding(4, 128)
    assert torch.equal(rounding(weight), golden[f"{name}.pseudo_quantized"])
    assert torch.equal(rounding.quantise(weight)[0], golden[f"{name}.scales"].T)


def test_linears_of_the_tables_exist(tiny: Any) -> None:
    for family, folds in FOLDS.items():
        model = tiny(family)[1]
        block = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))[0]
        assert all(is_linear(block.get_submodule(path)) for fold in folds for path in fold.sinks), family
