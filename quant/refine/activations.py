"""What llama.cpp's rounding of activations costs: ggml rounds what enters a matrix in a quantised type to 8 bits.

The samples that costs are predicted from are `calibration.input_samples`'; what lowers the costs is `passes.smooth`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.quant.passes.awq.rounding import rounded_activations

if TYPE_CHECKING:
    import torch

    from edgepack.gguf.types import GGMLType
    from edgepack.quant.calibration.block_samples import InputSample

FINE_BLOCK, COARSE_BLOCK = 32, 256  # of Q8_0 and Q8_1, of Q8_K


def activation_block(kind: GGMLType) -> int:
    """Consecutive inputs that share one step in front of a matrix of this type; 0 where they stay floats.

    Source: vec_dot_type in ggml/src/ggml-cpu/ggml-cpu.c. GPUs take blocks of 32 for every type, whose cost is less.
    """
    if not kind.is_quantized:
        return 0
    return COARSE_BLOCK if kind.block_size == COARSE_BLOCK else FINE_BLOCK


def activation_cost(sample: InputSample, kind: GGMLType) -> float:
    """Predicted divergence, in nats a token, of rounding what enters one matrix of type `kind`.

    ½ E[Σ_k g_k² δ_k²]: δ is what ggml's rounding does to the very inputs of the sample, g the gradient there of the
    log-likelihood of labels drawn from the model, whose mean square is the curvature of the divergence. The errors of
    different inputs and tokens count as independent.
    """
    return input_cost(sample.inputs, sample.gradients.square(), activation_block(kind))


def input_cost(inputs: torch.Tensor, sensitivity: torch.Tensor, block: int) -> float:
    """As `activation_cost`, for matrices that share one input.

    Args:
        inputs: float32 [tokens, in].
        sensitivity: squares of the gradient at the inputs, by way of all matrices, float32 [tokens, in].
        block: consecutive inputs that share a step; 0 for none.
    """
    if not block:
        return 0.0
    error = rounded_activations(inputs, block) - inputs
    return 0.5 * float((sensitivity * error.square()).sum(-1).mean())
