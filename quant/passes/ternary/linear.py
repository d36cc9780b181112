"""A linear layer with ternary weights and 8-bit activations that gradients pass, as BitNet b1.58 has it.

Sources: BitNet b1.58 (arXiv 2402.17764) for the absmean rule and the activations, straight-through estimator of Bengio
et al. (arXiv 1308.3432). Which layers become such ones, and how they learn, is left to `training`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

BLOCK = 256  # weights of a row under one scale: a block of ggml's TQ1_0 and TQ2_0
_LARGEST = 127.0
_LEAST = 1e-5  # of an activation's magnitude, as BitNet has it


def scales_and_trits(weight: torch.Tensor, reach: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean magnitudes, as float16 holds them, and clip(round(w / scale), -1, 1).

    Args:
        weight: float [out, in].
        reach: weights of a row under one scale, the last of a row may be fewer; 0 for one scale for all.

    Returns:
        (scales float32 [out, in], each repeated over its weights; trits float32 [out, in]).
    """
    if reach == 0:
        scale = _half(weight.abs().mean()).expand(weight.shape)
    else:
        columns = weight.shape[1]
        padded = functional.pad(weight.abs().float(), (0, -columns % reach)).unflatten(1, (-1, reach))
        counts = padded.new_full((padded.shape[1],), reach)
        counts[-1] = reach - (-columns % reach)
        scale = _half(padded.sum(2) / counts).repeat_interleave(reach, 1)[:, :columns]
    trits = (weight / torch.where(scale > 0, scale, torch.inf)).round().clamp(-1, 1)
    return scale, trits


def _half(scale: torch.Tensor) -> torch.Tensor:
    return scale.clamp_max(torch.finfo(torch.float16).max).half().float()


def ternary_weight(weight: torch.Tensor, reach: int) -> torch.Tensor:
    """The weights that the file holds: trit · scale, float32 [out, in]."""
    scale, trits = scales_and_trits(weight, reach)
    return trits * scale


def rounded_tokens(inputs: torch.Tensor) -> torch.Tensor:
    """Activations [..., width] as 8-bit integers hold them, one step for each token."""
    step = inputs.abs().amax(-1, keepdim=True).clamp_min(_LEAST) / _LARGEST
    return (inputs / step).round().clamp(-_LARGEST - 1, _LARGEST) * step


class TernaryLinear(nn.Linear):  # type: ignore[misc]  # torch is not followed by mypy
    """A linear layer whose latent weights act as ternary ones: w + λ·(Q(w) - w), and likewise what enters it.

    Args:
        origin: the layer that it takes the place of; its parameters are taken over, not copied.
        reach: as in `scales_and_trits`.
        rounds_inputs: whether activations are rounded to 8 bits.
    """

    def __init__(self, origin: nn.Linear, reach: int, *, rounds_inputs: bool) -> None:
        super().__init__(origin.in_features, origin.out_features, bias=False, device="meta")
        self.weight, self.bias = origin.weight, origin.bias
        self.reach, self.rounds_inputs = reach, rounds_inputs
        self.strength = 1.0
        """λ: 0 is the layer as it was, 1 the file's."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`; the gradient is that of the latent weights and the inputs as they came."""
        weight = self.weight
        if self.strength:
            with torch.no_grad():
                moved = self.strength * (ternary_weight(weight, self.reach) - weight)
                eased = self.strength * (rounded_tokens(inputs) - inputs) if self.rounds_inputs else None
            weight = weight + moved
            inputs = inputs if eased is None else inputs + eased
        return functional.linear(inputs, weight, self.bias)
