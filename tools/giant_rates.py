"""The blocks of GLM-4.7, and how long this machine takes for what is done with them: `giant_walks` plans with both.

Rates are of one processor and of small matrices: a multiply-add, a factor, and rounding a weight in rows of two
lengths, from which that of long rows follows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml.codec import quantize_rows
from edgepack.quant.codecs.torch_threads import one_thread
from edgepack.quant.feedback import FeedbackFactor, feedback_factor
from edgepack.quant.passes.gptq import gptq_rows
from edgepack.quant.refine.rounding import refine_matrix
from edgepack.quant.wire.factor import SweepFactor
from edgepack.quant.wire.grid import Lattice, half
from edgepack.quant.wire.rounding import round_matrix

if TYPE_CHECKING:
    from collections.abc import Callable

KIND = GGMLType.Q4_K
_ROWS, _WIDTHS = 64, (512, 1536)  # that are rounded
_TOKENS, _CUBE = 512, 768  # of the product that is timed; columns of the factor


@dataclass(frozen=True)
class Matrix:
    """Matrices of a block that are alike.

    Attributes:
        rows, columns: of each.
        reads: names the input; those that read one share its H.
        count: how many: 1, or the experts of a stack.
        share: of all tokens that each sees.
    """

    rows: int
    columns: int
    reads: str
    count: int = 1
    share: float = 1.0

    @property
    def weights(self) -> int:
        """Of all."""
        return self.rows * self.columns * self.count

    @property
    def is_stack(self) -> bool:
        """Whether they are experts, which `gptq` leaves to plain encoding."""
        return self.count > 1


@dataclass(frozen=True)
class Block:
    """A transformer block.

    Attributes:
        matrices: of it.
    """

    matrices: tuple[Matrix, ...]

    @cached_property
    def weights(self) -> int:
        """Of all matrices."""
        return sum(each.weights for each in self.matrices)

    @cached_property
    def multiplies(self) -> float:
        """A token, forwards."""
        return sum(each.weights * each.share for each in self.matrices)

    @cached_property
    def squares(self) -> float:
        """A token: what G takes of outputs that are no more than inputs."""
        fitting = (each for each in self.matrices if each.rows <= each.columns)
        return sum(each.rows**2 * each.count * each.share for each in fitting)

    def inputs(self, stacks: bool = True) -> list[Matrix]:
        """A matrix for each input, with those of experts or without."""
        found = {each.reads: each for each in self.matrices if stacks or not each.is_stack}
        return list(found.values())

    def products(self, stacks: bool = True) -> float:
        """A token: what H takes."""
        return sum(each.columns**2 * each.count * each.share for each in self.inputs(stacks))

    def moment_bytes(self, stacks: bool = True) -> int:
        """Of H in float32."""
        return sum(4 * each.columns**2 * each.count for each in self.inputs(stacks))


def blocks_of(config: dict[str, Any]) -> list[Block]:
    """The blocks of a GLM-4.5 to 4.7 that a text goes through."""
    d, head = config["hidden_size"], config["head_dim"]
    q, kv, experts = (
        config["num_attention_heads"] * head,
        config["num_key_value_heads"] * head,
        config["n_routed_experts"],
    )
    attention = (Matrix(q, d, "attention"), Matrix(kv, d, "attention"), Matrix(kv, d, "attention"), Matrix(d, q, "o"))

    def gated(width: int, name: str, count: int = 1, share: float = 1.0) -> tuple[Matrix, ...]:
        into = f"{name}-in" if count > 1 else "mlp"
        up = Matrix(width, d, into, count, share)
        return (up, up, Matrix(d, width, f"{name}-down", count, share))

    width = config["moe_intermediate_size"]
    routed = gated(width, "experts", experts, config["num_experts_per_tok"] / experts)
    mixture = (Matrix(experts, d, "mlp"), *gated(width * config["n_shared_experts"], "shared"), *routed)
    dense = Block((*attention, *gated(config["intermediate_size"], "dense")))
    first = config["first_k_dense_replace"]
    return [dense] * first + [Block((*attention, *mixture))] * (config["num_hidden_layers"] - first)


@dataclass(frozen=True)
class RowRate:
    """Seconds a weight of a row: what grows with its length is the error that is fed to later columns.

    Attributes:
        each: of a weight.
        column: more for each column of the row.
    """

    each: float
    column: float

    def seconds(self, matrix: Matrix) -> float:
        """Of all weights of a matrix or stack."""
        return matrix.weights * (self.each + self.column * matrix.columns)


@dataclass(frozen=True)
class Rates:
    """Seconds on one processor.

    Attributes:
        multiply: a multiply-add of float32 matrices.
        factor: a factor of H, over its columns' third power.
        rows: rounding, by kind of work, and `plain`.
    """

    multiply: float
    factor: float
    rows: dict[str, RowRate]

    def factors(self, matrix: Matrix) -> float:
        """Of H of a matrix or of each of a stack."""
        return self.factor * matrix.columns**3 * matrix.count


def measured() -> Rates:
    """Of this machine; a few seconds."""
    with one_thread():
        left, right = torch.randn(_TOKENS, 1024), torch.randn(1024, 1024)
        multiply = _taken(lambda: left @ right) / (_TOKENS * 1024 * 1024)
        inputs = _moments(_CUBE)
        factor = _taken(lambda: feedback_factor(inputs)) / _CUBE**3
        rows = {name: _row_rate(work) for name, work in _ROUNDERS.items()}
    return Rates(multiply, factor, rows)


def _taken(work: Callable[[], object]) -> float:
    """Process time, the better of two after one that builds tables."""
    work()
    found = []
    for _ in range(2):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def _moments(columns: int) -> torch.Tensor:
    return torch.eye(columns) + 0.1


def _row_rate(work: Callable[[torch.Tensor, torch.Tensor, FeedbackFactor], object]) -> RowRate:
    found = []
    for columns in _WIDTHS:
        weights, inputs = torch.randn(_ROWS, columns, generator=torch.Generator().manual_seed(1)), _moments(columns)
        factor = feedback_factor(inputs)
        found.append(_taken(lambda w=weights, h=inputs, f=factor: work(w, h, f)) / weights.numel())  # type: ignore[misc]
    column = max(0.0, (found[1] - found[0]) / (_WIDTHS[1] - _WIDTHS[0]))
    return RowRate(max(found[0] - column * _WIDTHS[0], 0.0), column)


def _plain(weights: torch.Tensor, _inputs: torch.Tensor, _factor: FeedbackFactor) -> object:
    return quantize_rows(KIND, weights.numpy())


def _fed_back(weights: torch.Tensor, _inputs: torch.Tensor, factor: FeedbackFactor) -> object:
    return gptq_rows(weights, factor, KIND, None)


def _refined(weights: torch.Tensor, inputs: torch.Tensor, factor: FeedbackFactor) -> object:
    return refine_matrix(weights, factor, KIND, inputs=inputs, row_costs=torch.ones(len(weights)), threads=1)


def _on_wire(weights: torch.Tensor, _inputs: torch.Tensor, factor: FeedbackFactor) -> object:
    rows, columns = weights.shape
    ones = torch.ones(columns, dtype=torch.int32)
    lattice = Lattice(
        half(torch.full((rows,), 0.3)), torch.ones(rows, columns // 32, dtype=torch.int32), ones, 127 * ones, 1
    )
    return round_matrix(weights, SweepFactor.of(factor), lattice)


_ROUNDERS = {"plain": _plain, "gptq": _fed_back, "refine": _refined, "wire": _on_wire}
