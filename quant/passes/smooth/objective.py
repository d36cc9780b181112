"""The predicted divergence of one input group as a function of the scales of its columns: activations and weights.

Both are rounded in blocks whose largest sets the step, so both are the same sum: over blocks, the squared step times
what errors in the block cost. A scale moves size from one to the other. How it is minimised is left to `scales`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edgepack.quant.passes.smooth.grids import WeightGrid, weight_grid
from edgepack.quant.refine.activations import activation_block

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.gguf.types import GGMLType
    from edgepack.quant.calibration.block_samples import InputSample

ROWS = 192  # of each matrix, from which its weights' cost is told
_HALF_TWELFTH = 0.5 / 12  # ½ of the second order, and the variance of a rounding error over its squared step
LEVELS = 127  # of an activation's step to the block's largest


@dataclass(frozen=True)
class Activations:
    """Inputs that are rounded with one block size.

    Attributes:
        squares: of the inputs [tokens, in].
        sensitivity: squares of the gradient at the inputs [tokens, in].
        block: consecutive inputs that share a step.
    """

    squares: torch.Tensor
    sensitivity: torch.Tensor
    block: int

    def cost(self, scales: torch.Tensor) -> torch.Tensor:
        """Nats a token when the inputs are divided by `scales` [in]."""
        square = scales.square()
        steps = (self.squares / square).unflatten(-1, (-1, self.block)).amax(-1)
        costs = (self.sensitivity * square).unflatten(-1, (-1, self.block)).sum(-1)
        return (_HALF_TWELFTH / LEVELS**2 / len(self.squares)) * (steps * costs).sum()


@dataclass(frozen=True)
class Weights:
    """Rows of a matrix.

    Attributes:
        rows: some of its rows [rows, in].
        costs: of a unit's square of error in each weight, for all rows of the matrix [rows, in].
        grid: of its type.
    """

    rows: torch.Tensor
    costs: torch.Tensor
    grid: WeightGrid

    def cost(self, scales: torch.Tensor) -> torch.Tensor:
        """Nats a token when the columns are multiplied with `scales` [in]."""
        steps = self.grid.squared_steps(self.rows * scales)
        costs = (self.costs / scales.square()).unflatten(-1, (-1, self.grid.block)).sum(-1)
        return _HALF_TWELFTH * (steps * costs).sum()


@dataclass(frozen=True)
class Objective:
    """All terms of one group."""

    activations: tuple[Activations, ...]
    weights: tuple[Weights, ...]

    def cost(self, scales: torch.Tensor) -> torch.Tensor:
        """Nats a token with the columns of all matrices multiplied with `scales` [in]."""
        terms = [term.cost(scales) for term in self.activations] + [term.cost(scales) for term in self.weights]
        return torch.stack(terms).sum()


@dataclass(frozen=True)
class Sink:
    """A matrix of the group: weight [out, in], the type that it is stored in, and its sample."""

    weight: torch.Tensor
    kind: GGMLType
    sample: InputSample


def objective_of(sinks: Sequence[Sink], part: slice = slice(None)) -> Objective:
    """The group's objective on a `part` of the sample's tokens; floats cost nothing.

    Args:
        sinks: matrices with one input, whose samples are of the same tokens.
        part: of the tokens.
    """
    quantised = [sink for sink in sinks if sink.kind.is_quantized]
    blocks = sorted({activation_block(sink.kind) for sink in quantised})
    activations = []
    for block in blocks:
        gradients = [sink.sample.gradients[part] for sink in quantised if activation_block(sink.kind) == block]
        total = torch.stack(gradients).sum(0)
        activations.append(Activations(quantised[0].sample.inputs[part].square(), total.square(), block))
    return Objective(tuple(activations), tuple(_weights(sink, part) for sink in quantised))


def _weights(sink: Sink, part: slice) -> Weights:
    grid = weight_grid(sink.kind)
    assert grid is not None
    out = len(sink.weight)
    rows = torch.linspace(0, out - 1, min(out, ROWS), device=sink.weight.device).round().long()
    outputs = sink.sample.outputs[part][:, rows]
    return weights_of(sink.weight[rows].float(), outputs, sink.sample.inputs[part], grid, out / len(rows))


def weights_of(
    rows: torch.Tensor, outputs: torch.Tensor, inputs: torch.Tensor, grid: WeightGrid, share: float
) -> Weights:
    """The term of a matrix. An error in row r and column k costs E[g_r² x_k²], token by token.

    Args:
        rows: some of its rows [rows, in].
        outputs: the gradient at their outputs [tokens, rows].
        inputs: [tokens, in].
        grid: of its type.
        share: what all rows cost, over what these cost.
    """
    costs = (outputs.square().T @ inputs.square()) * (share / len(inputs))
    return Weights(rows, costs, grid)
