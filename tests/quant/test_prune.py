"""Pruning: masks against direct computation, the walk over a model, zeros that survive ggml's quantisers."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from edgepack.errors import CalibrationError, CheckFailedError, UsageError
from edgepack.gguf.types import GGMLType
from edgepack.model import TensorSpec, read_tensor
from edgepack.quant.calibration.collect import collect
from edgepack.quant.codecs.ggml.codec import dequantize_rows, needs_importance, quantize_rows
from edgepack.quant.passes.prune.allocation import outlier_share, spread_sparsity
from edgepack.quant.passes.prune.grid import Level, choose_level, measure_levels
from edgepack.quant.passes.prune.layers import block_influence, drop_layers, keep_layers
from edgepack.quant.passes.prune.masks import Pattern, magnitude_mask, sparsegpt, wanda_mask
from edgepack.quant.passes.prune.weights import KEEPS_ZEROS, PruneSettings, comparison, prune_weights
from edgepack.quant.passes.registry import find_pass
from edgepack.quant.passes.run import PassRun

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.model import Checkpoint


def random_weight(out: int = 8, columns: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((out, columns)).astype(np.float32))


def test_magnitude_keeps_the_largest_of_the_matrix() -> None:
    weight = random_weight()
    mask = magnitude_mask(weight, Pattern(0.5, compare="layer"))
    assert int(mask.sum()) == 64
    assert weight[mask].abs().max() < weight[~mask].abs().min()


def test_wandas_mask_equals_a_direct_computation() -> None:
    weight, inputs = random_weight(), np.random.default_rng(1).standard_normal((50, 16)).astype(np.float32)
    mask = wanda_mask(weight, torch.from_numpy((inputs**2).mean(0)), Pattern(0.5))
    for row in range(8):
        scores = [abs(float(weight[row, j])) * float(np.linalg.norm(inputs[:, j])) for j in range(16)]
        assert set(np.flatnonzero(mask[row])) == set(np.argsort(scores)[:8])


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.6, 0.65, 0.7, 0.99])
def test_every_row_loses_exactly_its_share(sparsity: float) -> None:
    mask = wanda_mask(random_weight(5, 100), torch.ones(100), Pattern(sparsity))
    assert set(mask.sum(1).tolist()) == {int(sparsity * 100)}


def test_equal_scores_still_give_the_exact_share() -> None:
    assert int(magnitude_mask(torch.ones(4, 10), Pattern(0.5, compare="layer")).sum()) == 20


@pytest.mark.parametrize("compare", ["row", "layer"])
@pytest.mark.parametrize("steps", [1, 3, 1000])  # few different scores, so that many are equal, or many
def test_what_goes_is_what_a_stable_sort_puts_first(compare: Any, steps: int) -> None:
    scores = (torch.randn(17, 96, generator=torch.Generator().manual_seed(steps)) * steps).round().abs()
    competing = scores if compare == "row" else scores.reshape(1, -1)
    for sparsity in (0.0, 0.1, 0.5, 0.99):
        count = int(sparsity * competing.shape[1])
        least = competing.argsort(dim=1, stable=True)[:, :count]
        expected = torch.zeros_like(competing, dtype=torch.bool).scatter_(1, least, True).reshape(scores.shape)
        assert torch.equal(magnitude_mask(scores, Pattern(sparsity, compare=compare)), expected)


def test_two_of_four_keeps_the_best_two_of_every_four() -> None:
    weight = random_weight()
    mask = magnitude_mask(weight, Pattern(0.5, 4))
    for row in range(8):
        for start in range(0, 16, 4):
            group = weight[row, start : start + 4].abs()
            best = max(combinations(range(4), 2), key=lambda pair: float(group[list(pair)].sum()))
            assert set(np.flatnonzero(~mask[row, start : start + 4])) == set(best)


def test_a_ragged_end_keeps_its_weights() -> None:
    mask = magnitude_mask(random_weight(3, 10), Pattern(0.5, 4))
    assert not mask[:, 8:].any()
    assert int(mask.sum()) == 12


def correlated_hessian(columns: int = 16, seed: int = 2) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((200, columns)) @ generator.standard_normal((columns, columns))
    return torch.from_numpy((inputs.T @ inputs / 200).astype(np.float32))


def output_error(weight: torch.Tensor, pruned: torch.Tensor, hessian: torch.Tensor) -> float:
    error = weight - pruned
    return float(((error @ hessian) * error).sum())


@pytest.mark.parametrize("pattern", [Pattern(0.5), Pattern(0.5, 4), Pattern(0.7)])
@pytest.mark.parametrize("seed", range(4))
def test_sparsegpt_loses_less_than_wanda_and_wanda_less_than_magnitude(pattern: Pattern, seed: int) -> None:
    weight, hessian = random_weight(64, 32, seed), correlated_hessian(32, seed + 10)
    scale = torch.linspace(0.1, 3.0, 32)
    hessian = hessian * scale * scale[:, None]
    feedback, _ = sparsegpt(weight, hessian, pattern, "test")
    by_score = weight.masked_fill(wanda_mask(weight, hessian.diagonal(), pattern), 0)
    by_size = weight.masked_fill(magnitude_mask(weight, pattern), 0)
    losses = [output_error(weight, pruned, hessian) for pruned in (feedback, by_score, by_size)]
    assert losses == sorted(losses)


@pytest.mark.parametrize("pattern", [Pattern(0.5), Pattern(0.5, 4), Pattern(0.6)])
def test_sparsegpt_prunes_exactly_the_share(pattern: Pattern) -> None:
    pruned, _ = sparsegpt(random_weight(20, 256), torch.eye(256), pattern, "test")
    expected = int(pattern.sparsity * 128 * 20) * 2
    assert int((pruned == 0).sum()) == expected


def test_sparsegpt_with_independent_channels_only_masks() -> None:
    weight = random_weight()
    pruned, _ = sparsegpt(weight, torch.eye(16), Pattern(0.5), "test")
    kept = pruned != 0
    torch.testing.assert_close(pruned[kept], weight[kept])


def test_channels_that_are_never_active_are_pruned() -> None:
    hessian = correlated_hessian()
    hessian[5], hessian[:, 5] = 0, 0
    pruned, _ = sparsegpt(random_weight(), hessian, Pattern(0.25), "test")
    assert not pruned[:, 5].any()


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_is_pruned_to_the_level_and_its_input_stays(
    method: Any, family: str, tiny: Any, tokens: NDArray[np.int64], tmp_path: Path
) -> None:
    checkpoint, _ = tiny(family)
    before = {name: array.copy() for name, array in checkpoint.tensors.arrays.items()}
    outcome = prune_weights(checkpoint, PruneSettings(method, Pattern(0.5)), PassRun(tmp_path, tokens))
    assert outcome.figures["sparsity"] == pytest.approx(0.5, abs=0.02)
    changed = [n for n in before if not np.array_equal(read_tensor(outcome.checkpoint.tensors, n), before[n])]
    assert changed
    assert all(checkpoint.tensors.specs[name].rows > 1 for name in changed)
    assert not any("embed" in name or "wte" in name or "lm_head" in name for name in changed)
    for name, array in before.items():
        np.testing.assert_array_equal(checkpoint.tensors.arrays[name], array)


def test_later_blocks_are_pruned_on_what_the_pruned_blocks_give(
    tiny: Any, tokens: NDArray[np.int64], tmp_path: Path
) -> None:
    checkpoint, _ = tiny("llama")
    outcome = prune_weights(checkpoint, PruneSettings("wanda", Pattern(0.5)), PassRun(tmp_path, tokens))
    name = "model.layers.2.self_attn.q_proj.weight"
    changed = collect(outcome.checkpoint, tokens).statistics[name].mean_square
    weight = torch.from_numpy(read_tensor(checkpoint.tensors, name))
    expected = weight.masked_fill(wanda_mask(weight, torch.from_numpy(changed), Pattern(0.5)), 0)
    found = read_tensor(outcome.checkpoint.tensors, name)
    assert np.mean(found == expected.numpy()) > 0.99


def test_pruning_without_tokens_says_what_it_needs(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="pass 'prune' needs calibration tokens"):
        prune_weights(tiny("llama")[0], PruneSettings("wanda", Pattern(0.5)), PassRun(tmp_path))


def test_magnitudes_need_no_tokens(tiny: Any, tokens: NDArray[np.int64], tmp_path: Path) -> None:
    checkpoint, _ = tiny("llama")
    settings = PruneSettings("magnitude", Pattern(0.5))
    blind = prune_weights(checkpoint, settings, PassRun(tmp_path / "a"))
    seeing = prune_weights(checkpoint, settings, PassRun(tmp_path / "b", tokens))
    assert blind.figures == seeing.figures
    name = "model.layers.2.self_attn.q_proj.weight"
    assert np.array_equal(*(read_tensor(outcome.checkpoint.tensors, name) for outcome in (blind, seeing)))
    needs = find_pass("prune").needs_tokens
    assert not needs({"method": "magnitude", "allocation": "uniform"})
    assert needs({"method": "magnitude", "allocation": "owl"})
    assert needs({"method": "wanda", "allocation": "uniform"})


def test_outliers_are_counted_and_spare_their_block() -> None:
    scores = torch.ones(10, 10)
    scores[0, :3] = 1000
    assert outlier_share(scores) == pytest.approx(0.03)
    sparsities = spread_sparsity([1.0, 2.0, 4.0], 0.6)
    assert np.mean(sparsities) == pytest.approx(0.6)
    assert sparsities == sorted(sparsities, reverse=True)
    assert max(sparsities) - min(sparsities) == pytest.approx(0.16)
    assert spread_sparsity([2.0, 2.0], 0.6) == [0.6, 0.6]


def test_owl_keeps_the_models_sparsity(tiny: Any, tokens: NDArray[np.int64], tmp_path: Path) -> None:
    settings = PruneSettings("wanda", Pattern(0.6), "owl")
    figures = prune_weights(tiny("llama")[0], settings, PassRun(tmp_path, tokens)).figures
    assert figures["sparsity"] == pytest.approx(0.6, abs=0.03)
    assert figures["least_block_sparsity"] < 0.6 < figures["greatest_block_sparsity"]


@pytest.mark.parametrize("kind", [k for k in GGMLType if k.is_quantized and k.name not in ("Q8_1", "Q8_K")])
def test_which_types_hold_exact_zeros(kind: GGMLType) -> None:
    """Half of all weights are zero; a type keeps them when ggml's own quantiser gives zeros back."""
    weight = random_weight(2, 512, 3).numpy()
    weight[np.random.default_rng(0).random(weight.shape) < 0.5] = 0
    importance = np.ones(512, np.float32) if needs_importance(kind) else None
    back = dequantize_rows(kind, quantize_rows(kind, weight, importance), 2, 512)
    assert (kind in KEEPS_ZEROS) == bool((back[weight == 0] == 0).all())


def test_the_mask_survives_export(books: Checkpoint, tmp_path: Path) -> None:
    from edgepack.export.gguf_file import write_gguf
    from edgepack.export.mapped_model import map_checkpoint
    from edgepack.export.plan import plan_export
    from edgepack.gguf.reader import read_header
    from edgepack.quant.types.targets import find_target

    ids = np.random.default_rng(0).integers(0, 4000, (2, 16))
    settings = PruneSettings("wanda", Pattern(0.5, 4))
    pruned = prune_weights(books, settings, PassRun(tmp_path / "scratch", ids)).checkpoint
    path = tmp_path / "q6.gguf"
    write_gguf(plan_export(map_checkpoint(pruned), find_target("q6_k")), path, threads=1)
    info = read_header(path).tensor("blk.3.ffn_up.weight")
    raw = path.read_bytes()[read_header(path).data_start + info.offset :][: info.nbytes]
    weights = dequantize_rows(info.type, raw, *info.shape).reshape(-1, 4)
    assert ((weights == 0).sum(1) >= 2).all()


def test_whole_layers_go_by_least_influence(tiny: Any, tokens: NDArray[np.int64], tmp_path: Path) -> None:
    checkpoint, _ = tiny("llama")
    for name, array in checkpoint.tensors.arrays.items():
        if name.startswith("model.layers.1.") and name.endswith(("o_proj.weight", "down_proj.weight")):
            array[...] = 0  # block 1 adds nothing
    run = PassRun(tmp_path, tokens)
    assert block_influence(checkpoint, run)[1] == pytest.approx(0, abs=1e-6)
    outcome = drop_layers(checkpoint, 1, run)
    assert outcome.figures["dropped"] == "1"
    short = outcome.checkpoint
    assert short.config["num_hidden_layers"] == 2
    np.testing.assert_array_equal(
        read_tensor(short.tensors, "model.layers.1.mlp.up_proj.weight"),
        read_tensor(checkpoint.tensors, "model.layers.2.mlp.up_proj.weight"),
    )
    found, expected = (collect(model, tokens).statistics["lm_head.weight"] for model in (short, checkpoint))
    np.testing.assert_allclose(found.mean_square, expected.mean_square, rtol=1e-4)


def test_lists_with_an_entry_a_layer_are_cut_with_the_layers(tiny: Any) -> None:
    checkpoint, _ = tiny("gemma3_text")
    kinds = checkpoint.config["layer_types"]
    assert keep_layers(checkpoint, [0, 2]).config["layer_types"] == [kinds[0], kinds[2]]


def test_a_model_cannot_lose_all_its_layers(tiny: Any, tokens: NDArray[np.int64], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected 1 to 2 for 3 blocks, got 3"):
        drop_layers(tiny("llama")[0], 3, PassRun(tmp_path, tokens))


LEVELS = {0.3: Level(0.3, 10, 0.9, 500), 0.5: Level(0.5, 12, 0.8, 400), 0.7: Level(0.7, 30, 0.5, 300)}


def test_the_grid_measures_each_level_once_in_order() -> None:
    asked: list[float] = []

    def measure(sparsity: float, _steps: int) -> Level:
        asked.append(sparsity)
        return LEVELS[sparsity]

    assert measure_levels([0.7, 0.3, 0.7, 0.5], measure) == [LEVELS[0.3], LEVELS[0.5], LEVELS[0.7]]
    assert asked == [0.3, 0.5, 0.7]


def test_the_grid_picks_the_smallest_archive_that_agrees_enough() -> None:
    levels = list(LEVELS.values())
    assert choose_level(levels, 0.75) == LEVELS[0.5]
    assert choose_level(levels, 0.1) == LEVELS[0.7]
    with pytest.raises(CheckFailedError, match=r"the best is 0\.9000 at sparsity 0\.3"):
        choose_level(levels, 0.95)


def test_a_grid_outside_the_range_is_refused() -> None:
    with pytest.raises(UsageError, match=r"got \[1\.0\]"):
        measure_levels([1.0], lambda sparsity, _steps: LEVELS[sparsity])


def test_small_models_compare_over_a_matrix_and_large_ones_within_rows(tiny: Any) -> None:
    checkpoint, _ = tiny("llama")
    assert comparison(checkpoint) == "layer"
    large = SimpleNamespace(specs={"x": TensorSpec("x", (50_000, 20_000), "bf16")})
    assert comparison(replace(checkpoint, tensors=large)) == "row"
