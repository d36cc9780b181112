"""What the rounding of the output matrix wants: scales, or where it is the embedding too, an order of channels.

A head that is a matrix of its own takes scales into the last norm. One that is also the embedding cannot: what its
columns are scaled by would scale the residual stream, too, whose norms mix all channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.quant.passes.smooth.grids import weight_grid
from edgepack.quant.passes.smooth.objective import LEVELS, Activations, Objective, Weights, weights_of
from edgepack.quant.passes.smooth.order import find_order
from edgepack.quant.passes.smooth.scales import parts_of
from edgepack.quant.refine.activations import activation_block

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.gguf.types import GGMLType
    from edgepack.model import TensorSource
    from edgepack.quant.calibration.input_samples import HeadSample

_ITEMS = 256  # tokens of the search; twice as many found no better order
_LEAST_GAIN = 0.02


@dataclass(frozen=True)
class FoundOrder:
    """What a search gives.

    Attributes:
        order: which channel stands at each place, int64 [channels].
        before: predicted divergence of the head's rounding without it, on tokens that were not searched.
        after: with it.
    """

    order: NDArray[np.int64]
    before: float
    after: float

    @property
    def helps(self) -> bool:
        """Whether there is anything to move."""
        return self.after < (1 - _LEAST_GAIN) * self.before


def head_order(source: TensorSource, name: str, kind: GGMLType, sample: HeadSample) -> FoundOrder:
    """The order for the head `name` of a quantised type, from the sample of its inputs."""
    searched, held = head_objectives(source, name, kind, sample)
    order = find_order(*_items(searched), activation_block(kind))
    before, after = (_cost(held, each) for each in (torch.arange(len(order)), order))
    return FoundOrder(order.numpy(), before, after)


def head_objectives(source: TensorSource, name: str, kind: GGMLType, sample: HeadSample) -> tuple[Objective, Objective]:
    """The head's objective on the tokens to search on, and on those to judge on."""
    rows = torch.from_numpy(np.concatenate([source.read_rows(name, row, row + 1) for row in sample.rows.tolist()]))
    first, second = (_objective(rows, kind, sample, part) for part in parts_of(len(sample.inputs)))
    return first, second


def _objective(rows: torch.Tensor, kind: GGMLType, sample: HeadSample, part: slice) -> Objective:
    inputs, block, grid = sample.inputs[part].cpu(), activation_block(kind), weight_grid(kind)
    assert grid is not None
    activations = Activations(inputs.square(), sample.gradients[part].cpu().square(), block)
    return Objective((activations,), (weights_of(rows, sample.outputs[part].cpu(), inputs, grid, sample.share),))


def _items(objective: Objective) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared sizes and costs [items, channels]: some tokens, and the rows of weights where they have the same blocks.

    Both are scaled so that their sums are nats a token over the same constant.
    """
    activations, weights = objective.activations[0], objective.weights[0]
    places = torch.linspace(0, len(activations.squares) - 1, min(_ITEMS, len(activations.squares))).round().long()
    sizes, costs = [activations.squares[places] / LEVELS**2], [activations.sensitivity[places] / len(places)]
    if weights.grid.block == activations.block and not weights.grid.ranged:
        sizes.append((weights.rows / weights.grid.levels).square())
        costs.append(weights.costs)
    return torch.cat(sizes), torch.cat(costs)


def _cost(objective: Objective, order: torch.Tensor) -> float:
    activations, weights = objective.activations[0], objective.weights[0]
    moved = Objective(
        (Activations(activations.squares[:, order], activations.sensitivity[:, order], activations.block),),
        (Weights(weights.rows[:, order], weights.costs[:, order], weights.grid),),
    )
    return float(moved.cost(torch.ones(len(order))))
