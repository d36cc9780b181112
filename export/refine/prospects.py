"""What each type is predicted to cost each matrix: from a sample of its rows, rounded with plain feedback.

A row is drawn with a probability proportional to its curvature times its squares, so that a few rows of an embedding
tell of all. What refinement gains beyond plain feedback is `model`'s to measure, choosing `quant.refine.allocation`'s.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.files.output import atomic_output
from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml.codec import quantize_rows
from edgepack.quant.codecs.ggml.grid import GRID_TYPES
from edgepack.quant.passes.gptq import gptq_rows
from edgepack.quant.refine.kinds import candidates, input_block
from edgepack.quant.refine.rounding import row_losses

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.export.plan import PlannedTensor
    from edgepack.export.wire.curvatures import MatrixCurvatures
    from edgepack.quant.feedback import FeedbackFactor
    from edgepack.quant.refine.input_rounding import InputRounding

SAMPLED_ROWS = 64  # of a matrix
_SAMPLED_EXPERTS = 4  # of a stack, which share the rows
_READ_WEIGHTS = 1 << 22  # at a time


@dataclass(frozen=True)
class Prospect:
    """What a tensor's types are predicted to cost, in nats a token.

    Attributes:
        weights: type → of rounding its weights with plain feedback, or as the encoder does where that loses less.
        inputs: block of 8-bit activations → of rounding what it reads; empty where that was not measured.
        joint: what is left of the cost of weights where rows are rounded together; 1 where they are not.
    """

    weights: Mapping[GGMLType, float]
    inputs: Mapping[int, float] = field(default_factory=dict)
    joint: float = 1.0

    def cost(self, kind: GGMLType, *, on_gpu: bool = False, gain: float = 1.0) -> float:
        """Of weights, of whose cost `gain` is left, and inputs together."""
        block = input_block(kind, on_gpu=on_gpu)
        return gain * self.weights[kind] + (0.0 if block is None else self.inputs.get(block, 0.0))

    def save(self, path: Path) -> None:
        """Keep it."""
        weights = {kind.name: cost for kind, cost in self.weights.items()}
        told = {"weights": weights, "inputs": dict(self.inputs), "joint": self.joint}
        with atomic_output(path) as stream:
            stream.write(json.dumps(told).encode())

    @classmethod
    def load(cls, path: Path) -> Prospect:
        """What `save` kept."""
        told = json.loads(path.read_text())
        inputs = {int(block): cost for block, cost in told["inputs"].items()}
        return cls({GGMLType[name]: cost for name, cost in told["weights"].items()}, inputs, float(told["joint"]))


@dataclass(frozen=True)
class RowSample:
    """Some rows of one matrix, or of one expert of a stack.

    Attributes:
        expert: its number; 0 for a matrix.
        weights: float32 [rows, in].
        costs: float32 [rows]: the sum of costs · e H eᵀ over these rows stands for that over all rows of the tensor.
    """

    expert: int
    weights: torch.Tensor
    costs: torch.Tensor


@dataclass(frozen=True)
class Masses:
    """What is known of a tensor after all its rows were read once.

    Attributes:
        squares: float64 [rows], sum of squares of each row.
        columns: float64 [in], sum over rows of curvature times square.
    """

    squares: NDArray[np.float64]
    columns: NDArray[np.float64]


def read_masses(tensor: PlannedTensor, outputs: NDArray[np.float32]) -> Masses:
    """Read a tensor once, a piece at a time; `outputs` is the diagonal of G, float32 [rows]."""
    info = tensor.info
    squares, columns = np.empty(info.rows), np.zeros(info.shape[-1])
    step = max(1, _READ_WEIGHTS // info.shape[-1])
    for start in range(0, info.rows, step):
        stop = min(start + step, info.rows)
        piece = np.square(tensor.rows.read(start, stop))
        squares[start:stop] = piece.sum(1, dtype=np.float64)
        columns += outputs[start:stop].astype(np.float64) @ piece
    return Masses(squares, columns)


def sample(
    tensor: PlannedTensor, outputs: NDArray[np.float32], squares: NDArray[np.float64], count: int = SAMPLED_ROWS
) -> Iterator[RowSample]:
    """Rows that stand for all of a tensor, matrix by matrix.

    Args:
        tensor: whose rows are read.
        outputs: diagonal of G, float32 [rows].
        squares: of each row, float64 [rows].
        count: of rows, about.
    """
    experts = tensor.info.shape[0] if len(tensor.info.shape) == 3 else 1
    per = tensor.info.rows // experts
    mass = (outputs * squares).reshape(experts, per)
    drawn = _draw(mass.sum(1), _SAMPLED_EXPERTS)
    share = -(-count // len(drawn))
    for expert, weight in drawn.items():
        rows = _draw(mass[expert], share)
        taken = [expert * per + row for row in rows]
        costs = [outputs[row] * weight * each for row, each in zip(taken, rows.values(), strict=True)]
        read = [tensor.rows.read(row, row + 1) for row in taken]
        yield RowSample(expert, torch.from_numpy(np.concatenate(read)), torch.tensor(costs, dtype=torch.float32))


def quick_loss(rows: RowSample, kind: GGMLType, inputs: torch.Tensor, factor: FeedbackFactor | None) -> float:
    """½ Σ costs · e H eᵀ of rows in a type: by the encoder or, with a factor, by GPTQ's feedback where that is less.

    Args:
        rows: that are rounded.
        kind: the type.
        inputs: H, float32 [in, in].
        factor: of H; None for the encoder alone.
    """
    squares = inputs.diagonal().numpy()
    plain = quantize_rows(kind, rows.weights.numpy(), squares if kind.is_quantized else None)
    losses = row_losses(rows.weights, kind, plain, inputs)
    if factor is not None and kind in GRID_TYPES:
        fed_back, _loss = gptq_rows(rows.weights, factor, kind, squares)
        losses = np.minimum(losses, row_losses(rows.weights, kind, fed_back, inputs))
    return 0.5 * float(losses @ rows.costs.double().numpy())


def _draw(mass: NDArray[np.float64], count: int) -> dict[int, float]:
    """Numbers drawn at even steps of the summed mass → how many of them each stands for; all where they are few.

    The weighted sum of anything proportional to the mass is exact.
    """
    if len(mass) <= count or not mass.sum() > 0:
        return dict.fromkeys(range(min(len(mass), count)), max(1.0, len(mass) / count))
    sums = np.cumsum(mass)
    numbers = np.searchsorted(sums, (np.arange(count) + 0.5) / count * sums[-1])
    found, repeats = np.unique(np.minimum(numbers, len(mass) - 1), return_counts=True)
    return {
        int(number): float(times * sums[-1] / (count * mass[number]))
        for number, times in zip(found, repeats, strict=True)
    }


def input_costs(
    tensor: PlannedTensor, costs: MatrixCurvatures, columns: NDArray[np.float64], known: Mapping[str, InputRounding]
) -> dict[int, float]:
    """Block → ½ Σ_r G_rr Σ_k W_rk² var_k of rounding what a matrix reads; empty where that was not measured.

    Of a matrix that is embedding and head at once, H and G are scaled; the share of both in the costs is not known,
    and all is taken to be the head's.
    """
    origin = costs.origins.of(tensor.info.name)
    found = known.get(origin.names[0])
    if found is None or len(tensor.info.shape) != 2 or not found.mean_square > 0:
        return {}
    scale = float(costs.squares(tensor.info).mean()) / found.mean_square
    orders = {block: errors if origin.columns is None else errors[origin.columns] for block, errors in
              found.errors.items()}  # fmt: skip
    return {block: 0.5 * scale * float(columns @ errors.astype(np.float64)) for block, errors in orders.items()}


def fitting(tensor: PlannedTensor) -> tuple[GGMLType, ...]:
    """The types that a tensor may get: the candidates for its rows, and the one that it has."""
    found = candidates(tensor.info.shape[-1])
    return found if tensor.info.type in found else (*found, tensor.info.type)
