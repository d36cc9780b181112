"""Calibration against brute force: the whole model in memory with hooks of its own."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from edgepack.errors import CalibrationError, CheckpointError, NumericError, ResourceError, UnsupportedModelError
from edgepack.model import OverriddenTensors, read_tensor
from edgepack.quant.calibration.blocks import BlockwiseModel, is_linear, whole_model
from edgepack.quant.calibration.collect import collect
from edgepack.quant.calibration.storage import load_statistics
from edgepack.quant.calibration.sweep import BlockVisit, sweep
from edgepack.quant.calibration.text import evenly_spread, own_samples, sample_note, split_tokens, text_sequences

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.model import Checkpoint

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt_neox", "gpt2",
            "falcon", "bloom", "phi"]  # fmt: skip


def through_blocks(model: BlockwiseModel, tokens: torch.Tensor) -> torch.Tensor:
    hidden = sweep(model, tokens, lambda _visit: None, batch=2)
    return model.logits(hidden.to(model.dtype), tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_running_by_blocks_gives_the_models_own_logits(family: str, tiny: Any, tokens: NDArray[np.int64]) -> None:
    checkpoint, model = tiny(family)
    ids = torch.from_numpy(tokens)
    with torch.no_grad():
        expected = model(ids).logits
    found = through_blocks(BlockwiseModel(checkpoint), ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_no_weights_stay_in_memory_after_a_sweep(tiny: Any, tokens: NDArray[np.int64]) -> None:
    model = BlockwiseModel(tiny("llama")[0])
    through_blocks(model, torch.from_numpy(tokens))
    assert all(parameter.device.type == "meta" for parameter in model.model.parameters())


def test_one_block_is_loaded_at_a_time(tiny: Any, tokens: NDArray[np.int64]) -> None:
    model = BlockwiseModel(tiny("llama")[0])

    def look(visit: BlockVisit) -> None:
        loaded = {name for name, parameter in model.model.named_parameters() if parameter.device.type != "meta"}
        assert all(name.startswith(f"model.layers.{visit.block.index}.") for name in loaded)
        assert loaded

    sweep(model, torch.from_numpy(tokens), look)


def brute_force_inputs(model: Any, tokens: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Every linear's inputs [tokens, in], by hooks on the whole model."""
    seen: dict[str, NDArray[np.float64]] = {}

    def hook(name: str) -> Callable[..., None]:
        def look(_module: Any, arguments: tuple[torch.Tensor]) -> None:
            seen[f"{name}.weight"] = arguments[0].detach().double().flatten(0, -2).numpy()

        return look

    for name, module in model.named_modules():
        if is_linear(module):
            module.register_forward_pre_hook(hook(name))
    with torch.no_grad():
        model(torch.from_numpy(tokens))
    return seen


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "phi3"])
def test_statistics_equal_those_of_the_whole_model(family: str, tiny: Any, tokens: NDArray[np.int64]) -> None:
    checkpoint, model = tiny(family)
    statistics = collect(checkpoint, tokens, with_hessian=True, batch=2).statistics
    expected = brute_force_inputs(model, tokens)
    head = BlockwiseModel(checkpoint).head_name
    assert set(statistics) == {head if name.startswith("lm_head") else name for name in expected}
    for name, inputs in expected.items():
        found = statistics[str(head) if name.startswith("lm_head") else name]
        assert found.count == tokens.size
        np.testing.assert_allclose(found.mean_abs, np.abs(inputs).mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.mean_square, np.square(inputs).mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.hessian, inputs.T @ inputs / len(inputs), rtol=1e-3, atol=1e-4)


def test_the_importance_is_the_hessians_diagonal_and_takes_gguf_names(tiny: Any, tokens: NDArray[np.int64]) -> None:
    calibration = collect(tiny("llama")[0], tokens, with_hessian=True)
    name = "model.layers.0.mlp.down_proj.weight"
    importance = calibration.importance({name: "blk.0.ffn_down.weight"})
    assert list(importance) == ["blk.0.ffn_down.weight"]
    hessian = calibration.statistics[name].hessian
    assert hessian is not None
    np.testing.assert_allclose(importance["blk.0.ffn_down.weight"], np.diag(hessian), rtol=1e-5)


def test_the_batch_size_does_not_change_the_statistics(tiny: Any, tokens: NDArray[np.int64]) -> None:
    checkpoint, _ = tiny("mistral")
    one, all_at_once = (collect(checkpoint, tokens, batch=batch).statistics for batch in (1, 64))
    for name, values in one.items():
        np.testing.assert_allclose(values.mean_square, all_at_once[name].mean_square, rtol=1e-5)


def test_a_saved_run_is_loaded_and_not_run_again(
    tiny: Any, tokens: NDArray[np.int64], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, _ = tiny("llama")
    path = tmp_path / "books.safetensors"
    first = collect(checkpoint, tokens, with_hessian=True, save_to=path)
    monkeypatch.setattr("edgepack.quant.calibration.collect.sweep", None)
    second = collect(checkpoint, tokens, with_hessian=True, save_to=path)
    for name, values in first.statistics.items():
        np.testing.assert_array_equal(values.hessian, second.statistics[name].hessian)
    assert [file.name for file in tmp_path.iterdir()] == ["books.safetensors"]


def test_an_interrupted_run_resumes_at_the_block_it_had_reached(
    tiny: Any, tokens: NDArray[np.int64], tmp_path: Path, interrupted_once: Any
) -> None:
    checkpoint, _ = tiny("llama")
    whole = collect(checkpoint, tokens)
    visited = interrupted_once()
    path = tmp_path / "s.safetensors"
    with pytest.raises(KeyboardInterrupt):
        collect(checkpoint, tokens, save_to=path)
    assert not path.exists()
    resumed = collect(checkpoint, tokens, save_to=path)
    assert visited == [0, 1, 1, 2]
    for name, values in whole.statistics.items():
        np.testing.assert_array_equal(values.mean_square, resumed.statistics[name].mean_square)


def test_leftovers_of_other_tokens_are_not_resumed(tiny: Any, tokens: NDArray[np.int64], tmp_path: Path) -> None:
    checkpoint, _ = tiny("llama")
    path = tmp_path / "s.safetensors"
    collect(checkpoint, tokens, save_to=path)
    other = np.ascontiguousarray(tokens[::-1, ::-1])
    found = collect(checkpoint, other, save_to=path).statistics
    expected = collect(checkpoint, other).statistics
    for name, values in expected.items():
        np.testing.assert_array_equal(values.mean_square, found[name].mean_square)


def test_a_file_that_holds_no_statistics_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"not safetensors")
    with pytest.raises(CalibrationError, match=r"x\.safetensors"):
        load_statistics(path)


def with_tensor(checkpoint: Checkpoint, name: str, change: Callable[[NDArray[np.float32]], None]) -> Checkpoint:
    array = read_tensor(checkpoint.tensors, name)
    change(array)
    return replace(checkpoint, tensors=OverriddenTensors(checkpoint.tensors, {name: array}))


def test_nan_weights_name_the_tensor(tiny: Any, tokens: NDArray[np.int64]) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    broken = with_tensor(tiny("llama")[0], name, lambda array: array.fill(np.nan))
    with pytest.raises(NumericError, match=name):
        collect(broken, tokens)


def test_activations_that_overflow_name_the_layer(tiny: Any, tokens: NDArray[np.int64]) -> None:
    broken = with_tensor(tiny("llama")[0], "model.layers.1.mlp.up_proj.weight", lambda array: array.fill(3e38))
    with pytest.raises(NumericError, match=r"layer 'model\.layers\.1\.mlp\.down_proj\.weight'"):
        collect(broken, tokens)


def test_a_missing_tensor_is_named(tiny: Any, tokens: NDArray[np.int64]) -> None:
    checkpoint, _ = tiny("llama")
    del checkpoint.tensors.arrays["model.layers.2.mlp.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.up_proj"):
        collect(checkpoint, tokens)


def test_an_unknown_model_type_is_refused(tiny: Any, tokens: NDArray[np.int64]) -> None:
    checkpoint, _ = tiny("llama")
    with pytest.raises(UnsupportedModelError, match="'perceptron9000'"):
        collect(replace(checkpoint, config={"model_type": "perceptron9000"}), tokens)


def test_full_device_memory_halves_the_batch_and_counts_nothing_twice(
    tiny: Any, tokens: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, _ = tiny("llama")
    expected = collect(checkpoint, tokens, batch=1).statistics
    run = BlockVisit.run

    def fits_two(self: BlockVisit, start: int, stop: int) -> torch.Tensor:
        output = run(self, start, stop)
        if stop - start > 2:
            raise torch.OutOfMemoryError
        return output

    monkeypatch.setattr(BlockVisit, "run", fits_two)
    found = collect(checkpoint, tokens, batch=5).statistics
    for name, values in expected.items():
        assert values.count == found[name].count
        np.testing.assert_allclose(values.mean_square, found[name].mean_square, rtol=1e-5)


def test_memory_that_is_full_with_one_sequence_is_a_clear_error(
    tiny: Any, tokens: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(BlockVisit, "run", full)
    with pytest.raises(ResourceError, match="one sequence of 24 tokens"):
        collect(tiny("llama")[0], tokens)


def test_text_becomes_equal_pieces_that_begin_with_the_begin_token(books: Checkpoint) -> None:
    pieces = text_sequences(books, "It was a dark and stormy night. " * 200, length=64, sequences=5)
    assert pieces.shape == (5, 64)
    assert set(pieces[:, 0]) == {4094}
    assert 4094 not in pieces[:, 1:]


def test_text_that_is_too_short_says_how_much_is_needed(books: Checkpoint) -> None:
    with pytest.raises(CalibrationError, match=r"got \d+ tokens, needs at least 511 .* 32704 for the default"):
        text_sequences(books, "Too short.")


def test_pieces_are_spread_over_the_text() -> None:
    pieces = split_tokens(np.arange(100), None, 10, 3)
    assert pieces[:, 0].tolist() == [0, 40, 90]


def test_own_samples_are_reproducible_and_as_asked(books: Checkpoint) -> None:
    first, again = (own_samples(books, length=12, sequences=3, seed=5) for _ in range(2))
    assert first.shape == (3, 12)
    np.testing.assert_array_equal(first, again)
    assert set(first[:, 0]) == {4094}


def test_the_whole_model_is_the_reference(tiny: Any, tokens: NDArray[np.int64]) -> None:
    checkpoint, model = tiny("gpt2")
    ids = torch.from_numpy(tokens)
    with torch.no_grad():
        torch.testing.assert_close(whole_model(checkpoint)(ids).logits, model(ids).logits)


@pytest.mark.parametrize(("available", "wanted"), [(1, 1), (1, 64), (7, 3), (64, 64), (1000, 64)])
def test_a_sample_of_a_text_is_spread_from_its_first_to_its_last_piece(available: int, wanted: int) -> None:
    picks = evenly_spread(available, wanted)
    assert len(set(picks.tolist())) == min(wanted, available)
    assert picks[0] == 0
    assert picks[-1] == available - 1 or wanted == 1
    gaps = np.diff(picks)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_a_sample_is_told_and_a_whole_text_is_not() -> None:
    assert sample_note(64, 64, 512) == ""
    assert "64 of its 2490 pieces of 512 tokens" in sample_note(2490, 64, 512)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_a_large_model_samples_in_its_own_type_and_a_small_one_in_float32(
    dtype: str, books: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgepack.quant.calibration import text

    specs = {name: replace(spec, dtype=dtype) for name, spec in books.tensors.specs.items()}
    source = replace(books, tensors=SimpleNamespace(specs=specs))
    assert text._sampling_type(source) is torch.float32
    monkeypatch.setattr(text, "LARGE", 10**6)
    expected = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
    assert text._sampling_type(source) is expected[dtype]
