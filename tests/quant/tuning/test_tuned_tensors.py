"""Tensors as parameters: they start as the file's bytes, and what they become is what ggml reads from the new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml.codec import dequantize_rows, needs_importance, quantize_rows
from edgepack.quant.codecs.ggml.fields import FIELD_TYPES, read_fields
from edgepack.quant.tuning.parts import GUMBEL, INTEGERS, PARTS, VECTORS
from edgepack.quant.tuning.relaxed import SHARE, RelaxedMoves, temperature
from edgepack.quant.tuning.straight_through import in_blocks_of_8_bits, offsets_in_cells
from edgepack.quant.tuning.tensors import TunedBlocks, TunedVector, can_tune

if TYPE_CHECKING:
    from numpy.typing import NDArray

EVERY = frozenset(PARTS)
KINDS = sorted(kind for kind in FIELD_TYPES if not needs_importance(kind))


def blocks_of(kind: GGMLType, rows: int, blocks: int) -> tuple[NDArray[Any], torch.Tensor]:
    weights = np.random.default_rng(3).normal(size=(rows, blocks * kind.block_size)).astype(np.float32)
    return quantize_rows(kind, weights), torch.from_numpy(weights)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (5, 3)])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_tensor_starts_as_the_bytes_of_the_file_and_stays_of_their_size(
    kind: GGMLType, shape: tuple[int, int]
) -> None:
    raw, weights = blocks_of(kind, *shape)
    tensor = TunedBlocks(kind, raw, weights, EVERY)
    np.testing.assert_array_equal(tensor.blocks(), raw)
    expected = dequantize_rows(kind, raw.reshape(-1), shape[0], weights.shape[1])
    np.testing.assert_allclose(tensor.values().detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    generator = torch.Generator().manual_seed(0)
    for part, parameters in tensor.parameters_by_part().items():
        for parameter in parameters:
            size = 1.0 if part == INTEGERS else 0.2
            parameter.data += size * torch.randn(parameter.shape, generator=generator)
    tensor.settle()
    moved = tensor.blocks()
    assert moved.shape == raw.shape
    assert (moved != raw).any()
    expected = dequantize_rows(kind, moved.reshape(-1), shape[0], weights.shape[1])
    np.testing.assert_allclose(tensor.values().detach().numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_relaxed_moves_start_at_the_file_and_end_at_whole_moves_of_at_most_one(kind: GGMLType) -> None:
    raw, weights = blocks_of(kind, 2, 2)
    tensor = TunedBlocks(kind, raw, weights, EVERY, GUMBEL)
    before = tensor.values().detach()
    np.testing.assert_array_equal(tensor.blocks(), raw)
    assert tensor.moves is not None
    assert len(tensor.moves.latent) == weights.numel() // SHARE
    tensor.relax(1.0, 7)
    drawn = tensor.values().detach()
    tensor.relax(1.0, 7)
    assert torch.equal(tensor.values(), drawn)  # the seed alone decides
    assert not torch.equal(drawn, before)
    tensor.values().square().sum().backward()
    assert tensor.moves.latent.grad is not None
    assert (tensor.moves.latent.grad != 0).any()
    tensor.moves.latent.data += 3.0
    tensor.settle()
    old, new = (read_fields(kind, blocks).integers.astype(int) for blocks in (raw, tensor.blocks()))
    chosen = np.zeros(old.size, bool)
    chosen[tensor.moves.at.numpy()] = True
    expected = np.where(chosen.reshape(old.shape), np.minimum(old + 1, len(tensor.levels) - 1), old)
    np.testing.assert_array_equal(new, expected)
    held = dequantize_rows(kind, tensor.blocks().reshape(-1), 2, weights.shape[1])
    np.testing.assert_allclose(tensor.values().detach().numpy(), held, rtol=1e-5, atol=1e-5)


def test_a_cooler_draw_is_nearer_to_whole_moves() -> None:
    offsets = torch.linspace(-0.49, 0.49, 4000)
    found = {}
    for heat in (1.0, 0.1):
        moves = RelaxedMoves(offsets)
        moves.relax(heat, 3)
        drawn = moves(torch.zeros(4000, dtype=torch.uint8)).detach()
        found[heat] = float((drawn - drawn.round()).abs().mean())
    assert found[0.1] < 0.5 * found[1.0]
    assert temperature(0, 10) == 1.0
    assert temperature(10, 10) == pytest.approx(0.1)


def test_integers_that_feedback_put_elsewhere_say_nothing_of_their_cells() -> None:
    indices, positions = torch.full((100,), 3.0), torch.full((100,), 3.3)
    assert offsets_in_cells(indices, positions, 7).unique().tolist() == pytest.approx([0.3])
    positions[:10] = 4.2  # in a neighbour's cell
    assert not offsets_in_cells(indices, positions, 7).any()
    positions[:10] = 9.0  # beyond the last level: nothing else could hold it
    assert offsets_in_cells(indices, positions, 7).any()


@pytest.mark.parametrize("kind", [GGMLType.Q4_K, GGMLType.Q8_0, GGMLType.IQ4_NL], ids=lambda kind: kind.name)
def test_gradients_pass_every_rounding(kind: GGMLType) -> None:
    raw, weights = blocks_of(kind, 2, 2)
    tensor = TunedBlocks(kind, raw, weights, EVERY)
    (tensor.values() * torch.from_numpy(np.random.default_rng(0).normal(size=weights.shape))).sum().backward()
    for parameters in tensor.parameters_by_part().values():
        for parameter in parameters:
            assert parameter.grad is not None
            assert (parameter.grad != 0).any()


def test_the_gradient_of_a_step_is_the_slope_of_its_block() -> None:
    """Against a difference quotient, of a step large enough for float16 to show it."""
    raw, weights = blocks_of(GGMLType.Q4_1, 1, 2)
    direction = torch.from_numpy(np.random.default_rng(5).normal(size=weights.shape).astype(np.float32))
    slopes = []
    for shift in (0.0, -0.25, 0.25):
        tensor = TunedBlocks(GGMLType.Q4_1, raw, None, frozenset({"steps"}))
        tensor.step_moved.data[1] += shift
        total = (tensor.values() * direction).sum()
        total.backward()
        slopes.append((float(total.detach()), float(tensor.step_moved.grad[1])))
    (_, gradient), (low, _), (high, _) = slopes
    assert gradient == pytest.approx((high - low) / 0.5, rel=2e-3)


def test_a_weight_at_the_edge_of_its_cell_moves_first() -> None:
    raw, weights = blocks_of(GGMLType.Q4_0, 1, 1)
    tensor = TunedBlocks(GGMLType.Q4_0, raw, weights, frozenset({INTEGERS}))
    error = (weights - tensor.values().detach()).reshape(-1)
    step = float(tensor.step)
    lean = (tensor.integers.detach() - tensor.integers.detach().round()).reshape(-1) * step
    inside = error.abs() < 0.49 * abs(step)
    torch.testing.assert_close(lean[inside], error[inside], rtol=1e-3, atol=1e-5)


def test_an_original_that_is_another_matrix_says_nothing_of_cells() -> None:
    raw, weights = blocks_of(GGMLType.Q4_0, 2, 1)
    tensor = TunedBlocks(GGMLType.Q4_0, raw, -weights, frozenset({INTEGERS}))
    assert (tensor.integers.detach() == tensor.integers.detach().round()).all()


@pytest.mark.parametrize("kind", [GGMLType.F32, GGMLType.F16, GGMLType.BF16], ids=lambda kind: kind.name)
def test_a_vector_is_what_its_type_holds(kind: GGMLType) -> None:
    elements = np.random.default_rng(0).normal(size=(1, 48)).astype(np.float32)
    raw = quantize_rows(kind, elements)
    tensor = TunedVector(kind, torch.from_numpy(dequantize_rows(kind, raw.reshape(-1), 1, 48)[0]))
    np.testing.assert_array_equal(tensor.blocks(), raw)
    tensor.moved.data += 0.01
    expected = dequantize_rows(kind, tensor.blocks().reshape(-1), 1, 48)
    np.testing.assert_array_equal(tensor.values().detach().numpy().reshape(1, -1), expected)


def test_what_can_be_tuned_follows_type_shape_and_parts() -> None:
    assert can_tune(GGMLType.F32, (8,), frozenset({VECTORS}))
    assert not can_tune(GGMLType.F32, (8,), EVERY - {VECTORS})
    assert can_tune(GGMLType.Q6_K, (8, 256), EVERY)
    assert not can_tune(GGMLType.F16, (8, 256), EVERY)
    assert not can_tune(GGMLType.IQ2_S, (8, 256), EVERY)


@pytest.mark.parametrize("block", [32, 256])
def test_inputs_are_rounded_to_half_a_step_and_pass_gradients_as_they_are(block: int) -> None:
    inputs = torch.from_numpy(np.random.default_rng(2).normal(size=(3, 512)).astype(np.float32)).requires_grad_()
    rounded = in_blocks_of_8_bits(inputs, block)
    steps = inputs.detach().unflatten(-1, (-1, block)).abs().amax(-1) / 127
    error = (rounded - inputs).detach().unflatten(-1, (-1, block)).abs()
    assert (error <= 0.5001 * steps[..., None]).all()
    assert (error > 0).any()
    rounded.sum().backward()
    torch.testing.assert_close(inputs.grad, torch.ones_like(inputs))
