"""Roundings that gradients pass: half precision, integers, levels of a grid, activations in 8-bit blocks.

The straight-through estimator (Bengio et al., arXiv 1308.3432): forward is exactly what the file or llama.cpp will
hold, backward is the identity in the rounded number. What is rounded is left to `tensors` and `student`.
"""

from __future__ import annotations

from typing import Any

import torch

from edgepack.quant.passes.awq.rounding import rounded_activations

_EDGE = 0.499  # of a step: where a latent number rounds to the integer that it belongs to
_BESIDE, _MOST_AWAY = 0.05, 0.05  # encoders leave a few beside their cell, as they round codes after integers


def as_half(values: torch.Tensor) -> torch.Tensor:
    """`values` as float16 holds them, in their own type; the gradient is the identity."""
    return values + (values.half().to(values.dtype) - values).detach()


def as_bfloat(values: torch.Tensor) -> torch.Tensor:
    """`values` as bfloat16 holds them, in their own type; the gradient is the identity."""
    return values + (values.bfloat16().to(values.dtype) - values).detach()


def as_integers(values: torch.Tensor, lowest: int, highest: int) -> torch.Tensor:
    """`values` rounded and clamped to integers (both ends included); the gradient is the identity."""
    return values + (values.round().clamp(lowest, highest) - values).detach()


def offsets_in_cells(indices: torch.Tensor, positions: torch.Tensor, highest: int) -> torch.Tensor:
    """How far from `indices`, at most half a step, `positions` lie: float32 of their shape.

    All 0 where many weights lie in other cells than their integers (ends aside): what put them there, feedback or a
    trellis, made good errors of others, so that where the weight itself lies says nothing of where its integer should.
    """
    away = (positions - indices).abs() > 0.5 + _BESIDE
    inside = (positions > 0) & (positions < highest)
    if bool((away & inside).float().mean() > _MOST_AWAY):
        return torch.zeros_like(positions)
    return (positions - indices).clamp(-_EDGE, _EDGE)


class GridValues(torch.autograd.Function):  # type: ignore[misc]  # torch is not followed by mypy
    """scale · level[round(latent)] + offset, keeping nothing but its inputs for the backward pass.

    Arguments of `apply`: latent [blocks, groups, weights of a group], in units of indices; scale and offset
    [blocks, groups, 1]; levels [count], ascending. Gives values of the latent's shape.
    """

    @staticmethod
    def forward(
        context: Any, latent: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, levels: torch.Tensor
    ) -> torch.Tensor:
        """The values."""
        context.save_for_backward(latent, scale, levels)
        return torch.addcmul(offset, scale, _levels_at(latent, levels))

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of latent (by the local distance of levels), scale and offset."""
        latent, scale, levels = context.saved_tensors
        moved = None
        if context.needs_input_grad[0]:
            moved = gradient * scale
            if not _is_uniform(levels):
                moved *= _slopes(levels)[_indices(latent, len(levels))]
        scaled = (gradient * _levels_at(latent, levels)).sum(-1, keepdim=True)
        return moved, scaled, gradient.sum(-1, keepdim=True), None


def _is_uniform(levels: torch.Tensor) -> bool:
    return bool(levels[-1] - levels[0] == len(levels) - 1)


def _indices(latent: torch.Tensor, count: int) -> torch.Tensor:
    return latent.round().clamp_(0, count - 1).long() if latent.is_floating_point() else latent.long()


def _levels_at(latent: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    if not _is_uniform(levels):
        return levels[_indices(latent, len(levels))]
    whole = latent.round() if latent.is_floating_point() else latent.to(levels.dtype)
    return whole.clamp_(0, len(levels) - 1).add_(levels[0])


def _slopes(levels: torch.Tensor) -> torch.Tensor:
    """Half the distance between the neighbours of each level; at the ends the distance to the only one."""
    gaps = levels.diff()
    return torch.cat([gaps[:1], (gaps[1:] + gaps[:-1]) / 2, gaps[-1:]])


def in_blocks_of_8_bits(inputs: torch.Tensor, block: int) -> torch.Tensor:
    """`inputs` [..., columns] as llama.cpp's kernels see them, a step a `block`; the gradient is the identity."""
    with torch.no_grad():
        error = rounded_activations(inputs, block) - inputs
    return inputs + error
