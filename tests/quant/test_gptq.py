"""GPTQ into ggml types: on the grid, byte for byte what a file holds, and better than plain rounding."""

from __future__ import annotations

import pickle
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references.gptq_torch import BlockTypeRounder

from edgepack.gguf.types import GGMLType
from edgepack.model import read_tensor
from edgepack.quant.codecs.ggml.codec import dequantize_rows, quantize_rows
from edgepack.quant.codecs.ggml.grid import GRID_TYPES
from edgepack.quant.feedback import damping_note, feedback_factor, feedback_sweep
from edgepack.quant.passes.coded_rows import CodedRows, _places
from edgepack.quant.passes.gptq import GptqSettings, apply_gptq, gptq_rows
from edgepack.quant.passes.run import PassRun

if TYPE_CHECKING:
    from numpy.typing import NDArray


def layer(columns: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((600, 40)) @ generator.standard_normal((40, columns))
    inputs += generator.standard_normal(inputs.shape)
    weight = torch.from_numpy(generator.standard_normal((24, columns)).astype(np.float32))
    return weight, torch.from_numpy((inputs.T @ inputs / 600).astype(np.float32))


def loss(error: torch.Tensor, hessian: torch.Tensor) -> float:
    return float(((error @ hessian) * error).sum())


@pytest.mark.parametrize("kind", sorted(GRID_TYPES))
def test_outputs_are_nearer_than_with_plain_rounding_at_the_same_bytes(kind: GGMLType) -> None:
    weight, hessian = layer()
    importance = hessian.diagonal().numpy().copy()
    plain = quantize_rows(kind, weight.numpy(), importance)
    rows, _ = gptq_rows(weight, feedback_factor(hessian), kind, importance)
    assert rows.shape == plain.shape
    ours, theirs = (torch.from_numpy(dequantize_rows(kind, r, 24, 512)) - weight for r in (rows, plain))
    assert loss(ours, hessian) < 0.8 * loss(theirs, hessian)


@pytest.mark.parametrize("kind", [GGMLType.Q4_0, GGMLType.Q5_1, GGMLType.Q4_K, GGMLType.Q6_K], ids=lambda k: k.name)
@pytest.mark.parametrize("rows", [1, 16, 24])
def test_the_kernel_rounds_as_the_sweep_by_columns_does(kind: GGMLType, rows: int) -> None:
    weight, hessian = layer(768)
    weight, importance, factor = weight[:rows], hessian.diagonal().numpy().copy(), feedback_factor(hessian)
    found, loss_found = gptq_rows(weight, factor, kind, importance)
    rounder = BlockTypeRounder(kind, importance, rows)
    expected = feedback_sweep(weight, factor, rounder, block=256)
    # A sum in another order may move a weight that lies between two points, and then the columns after it.
    same = dequantize_rows(kind, found, rows, 768) == dequantize_rows(kind, rounder.rows(), rows, 768)
    assert same.mean() > 0.75
    assert loss_found <= 1.03 * expected.loss  # a few rows flip: neither order is the better one


def test_with_independent_channels_nothing_but_the_last_bit_differs_from_plain_rounding() -> None:
    weight, _ = layer()
    rows, _ = gptq_rows(weight, feedback_factor(torch.eye(512)), GGMLType.Q6_K, None)
    plain = dequantize_rows(GGMLType.Q6_K, quantize_rows(GGMLType.Q6_K, weight.numpy()), 24, 512)
    found = dequantize_rows(GGMLType.Q6_K, rows, 24, 512)
    assert np.abs(found - weight.numpy()).sum() <= np.abs(plain - weight.numpy()).sum() * 1.0001


@pytest.mark.parametrize("on_disk", [False, True])
def test_rows_are_found_by_value_in_any_order_and_only_whole(tmp_path: Path, on_disk: bool) -> None:
    weight, _ = layer()
    coded = CodedRows(tmp_path / "rows" if on_disk else None)
    blocks = quantize_rows(GGMLType.Q4_K, weight.numpy())
    values = coded.add(GGMLType.Q4_K, blocks, 512)
    order = np.random.default_rng(1).permutation(24)
    np.testing.assert_array_equal(coded.find(GGMLType.Q4_K, values[order]), blocks[order])
    assert coded.find(GGMLType.Q5_K, values) is None
    assert coded.find(GGMLType.Q4_K, weight.numpy()[:1]) is None
    assert coded.find(GGMLType.Q4_K, np.concatenate([values, weight.numpy()[:1]])) is None
    assert len(coded) == 24
    copied = coded.copy_to(tmp_path / "copy")
    assert sorted(copied.files) == sorted((tmp_path / "copy").iterdir())
    for again in (pickle.loads(pickle.dumps(coded)), copied, CodedRows.reopen(tmp_path / "copy", copied.index())):
        assert len(again) == 24
        np.testing.assert_array_equal(again.find(GGMLType.Q4_K, values[order]), blocks[order])


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=4))
def test_of_rows_that_are_added_again_the_last_counts(groups: list[list[int]]) -> None:
    """Blocks of two scales stand for the same zeros: as a mapping by value would have it."""
    coded, expected = CodedRows(), dict[bytes, bytes]()
    for number, group in enumerate(groups):
        blocks = np.zeros((len(group), 18), np.uint8)  # Q4_0: a scale in float16 and 16 bytes of quants
        blocks[:, 0], blocks[:, 2:] = np.arange(len(group)) + 7 * number, 0x88
        blocks[:, 1] = [60 if value else 0 for value in group]
        blocks[:, 2] = [value | 0x80 for value in group]
        values = coded.add(GGMLType.Q4_0, blocks, 32)
        expected |= {
            (value + np.float32(0)).tobytes(): block.tobytes() for value, block in zip(values, blocks, strict=True)
        }
    assert len(coded) == len(expected)
    with tempfile.TemporaryDirectory() as folder:
        for table in (coded, coded.copy_to(Path(folder))):
            for value, block in expected.items():
                found = table.find(GGMLType.Q4_0, np.frombuffer(value, np.float32).reshape(1, 32))
                assert found is not None
                assert found.tobytes() == block


def test_keys_of_which_one_half_is_equal_are_told_apart() -> None:
    known = np.array([[1, 5], [3, 1], [3, 4], [3, 9], [7, 0]], np.uint64)
    asked = np.array([[3, 9], [3, 4], [3, 5], [0, 0], [7, 0], [8, 1], [1, 5]], np.uint64)
    assert _places(known, asked).tolist() == [3, 2, -1, -1, 4, -1, 0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_row_of_the_model_is_what_its_bytes_stand_for(
    family: str, tiny: Any, tokens: NDArray[np.int64], tmp_path: Path
) -> None:
    checkpoint, _ = tiny(family)
    types = {n: GGMLType.Q4_0 for n, spec in checkpoint.tensors.specs.items() if len(spec.shape) == 2}
    outcome = apply_gptq(checkpoint, GptqSettings(), PassRun(tmp_path, tokens, types))
    assert outcome.coded is not None
    name = "model.layers.1.mlp.up_proj.weight" if family == "llama" else "transformer.h.1.mlp.c_fc.weight"
    stored = read_tensor(outcome.checkpoint.tensors, name)
    rows = stored if family == "llama" else np.ascontiguousarray(stored.T)
    found = outcome.coded.find(GGMLType.Q4_0, rows)
    assert found is not None
    np.testing.assert_array_equal(dequantize_rows(GGMLType.Q4_0, found, *rows.shape), rows)


def test_a_type_without_a_grid_is_left_and_told(tiny: Any, tokens: NDArray[np.int64], tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    run = PassRun(tmp_path, tokens, {name: GGMLType.IQ4_NL})
    outcome = apply_gptq(tiny("llama")[0], GptqSettings(), run)
    assert outcome.notes == (f"gptq: {name}: type IQ4_NL has no grid; left to plain quantisation",)
    assert outcome.figures["tensors"] == 0


def test_a_singular_hessian_is_damped_and_told(tiny: Any, tmp_path: Path) -> None:
    """Seven tokens cannot span 32 channels."""
    checkpoint, _ = tiny("llama")
    types = {name: GGMLType.Q4_0 for name, spec in checkpoint.tensors.specs.items() if len(spec.shape) == 2}
    outcome = apply_gptq(checkpoint, GptqSettings(), PassRun(tmp_path, np.arange(3, 10)[None], types))
    assert outcome.notes[0] == (
        "layer 'model.layers.0.self_attn.q_proj.weight': its Hessian is singular (7 tokens for 32 input channels),"
        " damped by 0.01 of its mean diagonal"
    )
    assert re.fullmatch(r"… and \d+ more of the same kind", outcome.notes[-1])
    undamped = apply_gptq(checkpoint, GptqSettings(0), PassRun(tmp_path / "0", np.arange(3, 10)[None], types))
    assert undamped.figures["damping"] >= 1e-6


def test_channels_that_copy_each_other_are_told() -> None:
    row = torch.ones(1, 4)
    factor = feedback_factor(row.T @ row, 0.0, "x")
    assert "input channels depend on each other" in damping_note("x", 100, 4, factor, 0.0)
    assert damping_note("x", 100, 4, feedback_factor(torch.eye(4), 0.01), 0.01) == ""
