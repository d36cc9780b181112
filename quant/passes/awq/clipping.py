"""Searches how far each independent group of a row may be clipped so that its rounding costs least.

Source: AWQ's clip search, with the file's own codec and the exact error on the group's inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from edgepack.quant.passes.awq.rounding import Rounding

STEPS = 10  # shrink by i / 20, i = 0 … 9


def clip_groups(
    weight: torch.Tensor, hessian: torch.Tensor, rounding: Rounding, importance: torch.Tensor | None, steps: int = STEPS
) -> torch.Tensor:
    """`weight` with each group of each row clipped to the share of its largest |w| that rounds best.

    Does not modify `weight`. A group keeps its weights unless clipping lowers its error e·H·eᵀ, with the group's
    own block of H.

    Args:
        weight: [out, in]; in is a multiple of the rounding's group.
        hessian: XᵀX / tokens [in, in].
        rounding: of the file.
        importance: E[x²] [in], or None.
        steps: how many shares are tried: 1 - i / 20.
    """
    out, columns = weight.shape
    group = min(rounding.group, columns)
    groups = weight.reshape(out, -1, group)
    largest = groups.abs().amax(2, keepdim=True)
    blocks = torch.stack([hessian[at : at + group, at : at + group] for at in range(0, columns, group)])
    best, least = groups.clone(), torch.full(groups.shape[:2], torch.inf, device=weight.device)
    for step in range(steps):
        limit = largest * (1 - step / 20)
        clipped = groups.clamp(-limit, limit)
        error = rounding(clipped.reshape(out, columns), importance).reshape(groups.shape) - groups
        loss = (torch.einsum("ogi,gij->ogj", error, blocks) * error).sum(2)
        better = loss < least
        best = torch.where(better[..., None], clipped, best)
        least = torch.where(better, loss, least)
    return best.reshape(out, columns)


def output_error(error: torch.Tensor, hessian: torch.Tensor) -> float:
    """Mean squared error of a linear's output, summed over channels, for a weight error: tr(E·H·Eᵀ).

    Args:
        error: [out, in].
        hessian: XᵀX / tokens [in, in].
    """
    return float(((error @ hessian) * error).sum())
