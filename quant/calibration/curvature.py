"""The curvature of a model's own predictions: how much divergence an error in each weight of each matrix costs.

For a small error E in a matrix, KL(original ‖ changed) is about ½ · tr(G · E · H · Eᵀ) a token, where H = E[x xᵀ] is
the second moment of the matrix's inputs and G that of the loss's gradient at its outputs, with the label drawn from
the model itself: the Fisher information, Kronecker-factored (Martens and Grosse 2015, arXiv 1503.05671). Kept are H
whole and the diagonal of G. One backward pass, block by block, gives all of them; memory is one block and the
activations between two blocks, those that enter the others wait on disk. What is done with them is left to `grid`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgepack.errors import CalibrationError, NumericError
from edgepack.progress import silent
from edgepack.quant.calibration.blocks import BlockwiseModel
from edgepack.quant.calibration.sweep import BatchRunner, sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.model import Checkpoint
    from edgepack.progress import Progress
    from edgepack.quant.calibration.blocks import Block
    from edgepack.quant.calibration.sweep import BlockVisit


_LOGITS = 1 << 26  # at a time: 256 MB in float32, and a few times that with their gradients


@dataclass(frozen=True)
class Curvature:
    """What an error in one matrix costs.

    Attributes:
        inputs: H = E[x xᵀ], float32 [in, in].
        outputs: diagonal of G, float32 [out]: mean square of the loss's gradient at each output.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor


class _Sums:
    """Running sums for one matrix over batches, in float64 on the CPU."""

    def __init__(self) -> None:
        self.inputs: torch.Tensor | None = None
        self.outputs: torch.Tensor | None = None
        self.count = 0

    def add(self, inputs: torch.Tensor | None, gradients: torch.Tensor | None) -> None:
        """Add activations [..., in] or gradients [..., out]."""
        if inputs is not None:
            flat = inputs.detach().reshape(-1, inputs.shape[-1])
            outer = (flat.T @ flat).double().cpu()
            self.inputs = outer if self.inputs is None else self.inputs + outer
            self.count += len(flat)
        if gradients is not None:
            square = gradients.detach().reshape(-1, gradients.shape[-1]).square().sum(0).double().cpu()
            self.outputs = square if self.outputs is None else self.outputs + square

    def result(self, name: str) -> Curvature:
        if self.inputs is None or self.outputs is None:
            raise NumericError(f"layer '{name}': saw no activations")
        if not (torch.isfinite(self.inputs).all() and torch.isfinite(self.outputs).all()):
            raise NumericError(f"layer '{name}': NaN or infinity in its activations or gradients")
        return Curvature((self.inputs / self.count).float(), (self.outputs / self.count).float())


def check_tokens(tokens: NDArray[np.int64]) -> None:
    """Refuse calibration text that says nothing; tokens [sequences, length].

    Raises:
        CalibrationError: one line over and over: fewer than 32 different tokens or 8 different windows of 16 tokens.
    """
    flat = tokens.reshape(-1)
    windows = {flat[start : start + 16].tobytes() for start in range(0, len(flat) - 15, 16)}
    distinct = len(set(flat.tolist()))
    repeated = len(windows) < min(8, max(1, len(flat) // 16))
    if distinct < 32 or repeated:
        raise CalibrationError(
            f"calibration text: expected varied text, got {len(flat)} tokens of {distinct} kinds in "
            f"{len(windows)} different windows: one line repeated tells nothing of the others"
        )


def measure(
    checkpoint: Checkpoint,
    tokens: NDArray[np.int64],
    scratch: Path,
    *,
    device: str = "cpu",
    batch: int = 4,
    seed: int = 0,
    progress: Progress = silent,
) -> Iterator[Mapping[str, Curvature]]:
    """Curvature of every matrix over `tokens` [sequences, length]; does not modify `checkpoint`.

    Args:
        checkpoint: the model.
        tokens: the text.
        scratch: a folder for activations: what enters each block, float32; files go as they have been used.
        device: a torch device.
        batch: sequences at a time; fewer at the head, whose logits are large.
        seed: of the labels.
        progress: told of each block.

    Yields:
        That of each block, from the last to the first, then that of the embedding and the head (tied ones as
        one): checkpoint name → curvature. A name whose matrix gives the embedding's rows has as `outputs` the
        curvature a row of the table, summed over all uses.

    Raises:
        CalibrationError: the text is one line repeated.
        NumericError: NaN or infinity.
    """
    check_tokens(tokens)
    scratch.mkdir(parents=True, exist_ok=True)
    run = _Run(BlockwiseModel(checkpoint, device), torch.from_numpy(tokens), scratch, batch, seed)
    yield from run.blocks(progress)
    yield run.tables()


class _Run:
    """One forward pass that keeps what enters each block, then one backward pass over the blocks."""

    def __init__(self, model: BlockwiseModel, tokens: torch.Tensor, scratch: Path, batch: int, seed: int) -> None:
        self.model, self.tokens, self.scratch, self.batch = model, tokens, scratch, batch
        self.runner = BatchRunner(model, tokens, batch)
        self.generator = torch.Generator().manual_seed(seed)
        self.gradient = torch.empty(0)
        self.head = _Sums()

    def batches(self, size: int) -> Iterator[slice]:
        """Consecutive sequences, at most `size` at a time."""
        return (slice(start, start + size) for start in range(0, len(self.tokens), size))

    def _entering(self, index: int) -> Path:
        return self.scratch / f"entering-{index}.npy"

    def blocks(self, progress: Progress) -> Iterator[dict[str, Curvature]]:
        """Curvature of every block, the last first."""

        def keep(visit: BlockVisit) -> None:
            np.save(self._entering(visit.block.index), visit.inputs.numpy())

        last = sweep(self.model, self.tokens, keep, batch=self.batch, progress=progress, label="Forward")
        self._backward_head(last)
        with progress("Curvature", self.model.block_count, " blocks") as advance:
            for index in reversed(range(self.model.block_count)):
                with self.model.block(index) as block:
                    yield self._backward_block(block, np.load(self._entering(index), mmap_mode="r"))
                self._entering(index).unlink()
                advance(1)

    def _backward_head(self, last: torch.Tensor) -> None:
        parts = []
        vocabulary = int(self.model.source.specs[self.model.head_name].shape[0]) if self.model.head_name else 1
        size = max(1, min(self.batch, _LOGITS // (vocabulary * self.tokens.shape[1])))
        with self.model.shell():
            for rows in self.batches(size):
                hidden = last[rows].to(self.model.device).requires_grad_(True)
                with torch.enable_grad():
                    logits = self.model.logits(hidden, self.tokens[rows])
                gradient = self._logit_gradient(logits)
                parts.append(torch.autograd.grad(logits, hidden, gradient)[0].cpu())
                self.head.add(self.model.head_inputs(hidden.detach(), self.tokens[rows]), gradient)
        self.gradient = torch.cat(parts)

    def _logit_gradient(self, logits: torch.Tensor) -> torch.Tensor:
        """Of -log p(label) for labels drawn from the model's own distribution: p - onehot(label)."""
        probabilities = logits.detach().float().softmax(-1)
        flat = probabilities.reshape(-1, probabilities.shape[-1])
        labels = torch.multinomial(flat.cpu(), 1, generator=self.generator).to(flat.device)
        return flat.scatter_add(1, labels, -torch.ones_like(labels, dtype=flat.dtype)).reshape(logits.shape)

    def _backward_block(self, block: Block, entering: NDArray[np.float32]) -> dict[str, Curvature]:
        sums = {name: _Sums() for name in block.linears}
        handles = [module.register_forward_hook(_observer(sums[name])) for name, module in block.linears.items()]
        parts = []
        try:
            for rows in self.batches(self.batch):
                hidden = torch.from_numpy(entering[rows].copy()).to(self.model.device).requires_grad_(True)
                with torch.enable_grad():
                    output = block.run(hidden, self.runner.calls(len(hidden))[block.index])
                parts.append(torch.autograd.grad(output, hidden, self.gradient[rows].to(hidden.device))[0].cpu())
        finally:
            for handle in handles:
                handle.remove()
        self.gradient = torch.cat(parts)
        return {name: total.result(name) for name, total in sums.items() if total.count}

    def tables(self) -> dict[str, Curvature]:
        """Embedding and head: as one where they are tied, or where the model has only one of them."""
        head, table = self.model.head_name, self.model.embedding_name
        result = {} if head is None else {head: self.head.result(head)}
        if table is not None:
            rows = self._table_curvature(int(self.model.source.specs[table].shape[0]))
            result[table] = rows if head != table else add_curvatures(result[table], rows)
        return result

    def _table_curvature(self, vocabulary: int) -> Curvature:
        """An error in row t costs G₀ each time that token t is read."""
        gradients = self.gradient.reshape(-1, self.gradient.shape[-1]).double()
        inner = (gradients.T @ gradients) / len(gradients)
        uses = torch.zeros(vocabulary, dtype=torch.float64)
        uses.index_add_(0, self.tokens.reshape(-1), gradients.square().mean(1))
        scale = inner.diagonal().mean().clamp_min(1e-30)
        return Curvature((inner / scale).float(), (uses / len(gradients)).float())


def _observer(sums: _Sums) -> Callable[[Any, tuple[torch.Tensor, ...], torch.Tensor], None]:
    """A forward hook: takes the inputs now and the gradient at the outputs when it comes."""

    def look(_module: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        sums.add(arguments[0], None)
        output.register_hook(lambda gradient: sums.add(None, gradient))

    return look


def add_curvatures(first: Curvature, second: Curvature) -> Curvature:
    """One Kronecker product in place of the sum of two, exact where their inputs are proportional.

    Rows' costs add up; inputs are averaged, each weighted by its share of the total cost.
    """
    shares = [float(item.outputs.sum()) * float(item.inputs.diagonal().mean()) for item in (first, second)]
    means = [item.inputs / item.inputs.diagonal().mean().clamp_min(1e-30) for item in (first, second)]
    total = sum(shares) or 1.0
    inputs = means[0] * (shares[0] / total) + means[1] * (shares[1] / total)
    outputs = [item.outputs * item.inputs.diagonal().mean() for item in (first, second)]
    return Curvature(inputs, outputs[0] + outputs[1])
