"""What curvature sums up over batches of one block: H of what enters its matrices, G of what leaves them.

Which batches, in which order and in which process, is left to `curvature` and `curvature_relay`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from edgepack.errors import NumericError
from edgepack.quant.calibration.checkpoint_names import expert_parts
from edgepack.quant.calibration.expert_curvature import ExpertMoments, ExpertSquares, ExpertWatch, expert_stacks
from edgepack.quant.calibration.products import as_multiplied, summed_products
from edgepack.quant.calibration.sweep import InputWatch
from edgepack.quant.row_feedback import JOINT_LEFT, RowFeedback

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.model import TensorSource
    from edgepack.quant.calibration.blocks import Block
    from edgepack.quant.calibration.statistics import LinearStatistics
    from edgepack.quant.calibration.sweep import BatchRunner


_TOKENS_AN_OUTPUT = 4  # that G needs, so that what it says of rows together holds of other tokens


class GradientSquares:
    """Mean squares of gradients, in float64 on the CPU, and mean products where outputs are not too many.

    Args:
        most: outputs for which products are kept: as many as inputs, so that G is no larger than H.
    """

    def __init__(self, most: int = 0) -> None:
        self.most = most
        self.products: torch.Tensor | None = None
        self.total: torch.Tensor | None = None
        self.count = 0
        self.gives_more = False  # than one tensor, as routers do that choose by themselves

    def add(self, gradients: torch.Tensor) -> None:
        """Add gradients [..., out]."""
        flat = gradients.detach().reshape(-1, gradients.shape[-1])
        squares = flat.float().square().sum(0).double().cpu()
        self.total = squares if self.total is None else self.total + squares
        self.count += len(flat)
        if flat.shape[-1] <= self.most:
            products = summed_products(flat, flat).double().cpu()
            self.products = products if self.products is None else self.products + products

    def joint(self) -> torch.Tensor | None:
        """G, float32 [out, out], where it pays."""
        if self.products is None or not torch.isfinite(self.products).all():
            return None
        if self.count < _TOKENS_AN_OUTPUT * len(self.products):
            return None
        joint = (self.products / self.count).float()
        return joint if RowFeedback.of(joint).left <= JOINT_LEFT else None

    def result(self, name: str) -> torch.Tensor:
        """float32 [out]; raises NumericError."""
        if self.total is None:
            raise NumericError(f"layer '{name}': saw no gradients")
        if not torch.isfinite(self.total).all():
            raise NumericError(f"layer '{name}': NaN or infinity in its gradients")
        return (self.total / self.count).float()


class BackwardSums:
    """G of a block's matrices, while batches are taken back through it.

    Args:
        block: is loaded.
    """

    def __init__(self, block: Block) -> None:
        self._block: Block | None = block
        self.squares = {name: GradientSquares(block.weight(name).shape[1]) for name in block.linears}
        self._stacks: Mapping[str, torch.Tensor] = expert_stacks(block)
        self.experts = {name: ExpertSquares(len(stack)) for name, stack in self._stacks.items()}

    def run(self, hidden: torch.Tensor, after: torch.Tensor, runner: BatchRunner) -> torch.Tensor:
        """A batch: what enters the block, the gradient after it → the gradient before it, on the CPU.

        Args:
            hidden: float32 [batch, length, width].
            after: the same shape.
            runner: gives masks and positions.
        """
        block = self._block
        assert block is not None, "the block is gone"
        handles = [module.register_forward_hook(_observer(self.squares[n])) for n, module in block.linears.items()]
        try:
            entering = hidden.to(runner.model.device).requires_grad_(True)
            with torch.enable_grad(), ExpertWatch(self._stacks, self._look):
                output = block.run(entering, runner.calls(len(entering))[block.index])
            return torch.autograd.grad(output, entering, after.to(entering.device))[0].cpu()
        finally:
            for handle in handles:
                handle.remove()

    def _look(self, name: str, expert: int, _inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        if outputs.requires_grad:
            outputs.register_hook(lambda gradient: self.experts[name].add(expert, gradient))

    def alone(self) -> BackwardSums:
        """The sums without the block, to be sent."""
        self._block, self._stacks = None, {}
        return self


def _observer(squares: GradientSquares) -> Callable[[Any, tuple[torch.Tensor, ...], Any], None]:
    """A forward hook: takes the gradient at the outputs when it comes."""

    def look(_module: Any, _arguments: tuple[torch.Tensor, ...], output: Any) -> None:
        if isinstance(output, torch.Tensor):
            output.register_hook(squares.add)
        else:
            squares.gives_more = True

    return look


class ForwardSums:
    """H of a block's matrices, while batches go through it.

    Args:
        source: names experts' parts.
        block: is loaded.
    """

    def __init__(self, source: TensorSource, block: Block) -> None:
        self._source, self._block = source, block
        self._watch = InputWatch(block.linears, with_hessian=True)
        self._stacks = expert_stacks(block)
        self._experts = {name: ExpertMoments(len(stack)) for name, stack in self._stacks.items()}

    def run(self, hidden: torch.Tensor, runner: BatchRunner) -> torch.Tensor:
        """A batch of what enters the block → what leaves it; float32 [batch, length, width] on the CPU."""
        block = self._block
        with self._watch.on(), ExpertWatch(self._stacks, self._look):
            return block.run(hidden.to(runner.model.device), runner.calls(len(hidden))[block.index]).cpu()

    def _look(self, name: str, expert: int, inputs: torch.Tensor, _outputs: torch.Tensor) -> None:
        self._experts[name].add(expert, as_multiplied(inputs))

    def statistics(self) -> dict[str, LinearStatistics]:
        """Of every linear layer; raises NumericError."""
        return self._watch.results()

    def hessians(self) -> dict[str, NDArray[np.float32] | None]:
        """Checkpoint name → H [in, in]; names that share an input have one array. Raises NumericError."""
        found = {name: value.hessian for name, value in self.statistics().items()}
        return found | expert_hessians(self._source, self._experts)


def expert_hessians(source: TensorSource, experts: Mapping[str, ExpertMoments]) -> dict[str, NDArray[np.float32]]:
    """Checkpoint name of every expert's part → its H."""
    found: dict[str, NDArray[np.float32]] = {}
    for name, moments in experts.items():
        ofs = [hessian.numpy() for hessian in moments.results()]
        found |= {part.name: ofs[part.expert] for part in expert_parts(source, name) if ofs}
    return found
