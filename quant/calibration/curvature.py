"""The curvature of a model's own predictions: how much divergence an error in each weight of each matrix costs.

For a small error E in a matrix, KL(original ‖ changed) is about ½ · tr(G · E · H · Eᵀ) a token, where H = E[x xᵀ] is
the second moment of the matrix's inputs and G that of the loss's gradient at its outputs, with the label drawn from
the model itself: the Fisher information, Kronecker-factored (Martens and Grosse 2015, arXiv 1503.05671). Kept are H
whole and the diagonal of G; G itself too where rows err together so much that rounding them together pays. A forward
pass over all the text gives H; a backward pass over every other sequence gives G, whose means need fewer tokens. Memory
is one block and the activations between two blocks, those that enter the others wait on disk, where an interrupted run
goes on at the last finished block. What is done with them is left to `grid` and `refine`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.errors import CalibrationError
from edgepack.progress import silent
from edgepack.quant.calibration.block_context import BlockContext, stage_bytes
from edgepack.quant.calibration.block_sums import BackwardSums, GradientSquares, expert_hessians
from edgepack.quant.calibration.checkpoint_names import expert_parts
from edgepack.quant.calibration.curvature_progress import CurvatureProgress
from edgepack.quant.calibration.expert_curvature import ExpertMoments, ExpertWatch, expert_stacks
from edgepack.quant.calibration.own_labels import gradient_at_logits, head_pieces, refuse_shared_keys
from edgepack.quant.calibration.products import as_multiplied
from edgepack.quant.calibration.statistics import MomentAccumulator
from edgepack.quant.calibration.sweep import BatchRunner, calibrated_model, sweep

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.crew import Crew
    from edgepack.model import Checkpoint
    from edgepack.progress import Progress
    from edgepack.quant.calibration.blocks import Block, BlockwiseModel
    from edgepack.quant.calibration.sweep import BlockVisit


_MANY = 16  # sequences from which on every other one is taken backwards


@dataclass(frozen=True)
class Curvature:
    """What an error in one matrix costs.

    Attributes:
        inputs: H = E[x xᵀ], float32 [in, in].
        outputs: diagonal of G, float32 [out]: mean square of the loss's gradient at each output.
        joint: G, float32 [out, out], where rows make good much of each other's errors; else None.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    joint: torch.Tensor | None = None


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
    crew: Crew | None = None,
) -> Iterator[Mapping[str, Curvature]]:
    """Curvature of every matrix over `tokens` [sequences, length]; does not modify `checkpoint`.

    Args:
        checkpoint: the model.
        tokens: the text.
        scratch: a folder for activations: what enters each block, float32; files go as they have been used. A run
            that ended early goes on from what it holds, where model and tokens are the same, with the same results; the
            part that was yielded last comes again.
        device: a torch device.
        batch: sequences at a time; fewer at the head, whose logits are large.
        seed: of the labels.
        progress: told of each block.
        crew: who runs the blocks, each block on one worker; None for this process. The results are the same.

    Yields:
        That of each block, from the last to the first, then that of the embedding and the head (tied ones as
        one): checkpoint name → curvature. A name whose matrix gives the embedding's rows has as `outputs` the
        curvature a row of the table, summed over all uses. All parts of a resumed run are not given again.

    Raises:
        CalibrationError: the text is one line repeated.
        UnsupportedModelError: layers that read what earlier ones keep.
        NumericError: NaN or infinity.
    """
    check_tokens(tokens)
    refuse_shared_keys(checkpoint.config)
    model = calibrated_model(checkpoint, device)
    kept = CurvatureProgress(scratch, (tokens, seed, sorted(checkpoint.tensors.specs), str(model.products)))
    run = _Run(model, torch.from_numpy(tokens), kept, batch, seed)
    if crew is not None:
        run = _CrewRun(run, crew)
    yield from run.blocks(progress)
    yield run.tables()
    kept.clear()


class _Run:
    """One forward pass that keeps what enters each block, then one backward pass over the blocks."""

    def __init__(
        self, model: BlockwiseModel, tokens: torch.Tensor, kept: CurvatureProgress, batch: int, seed: int
    ) -> None:
        self.model, self.tokens, self.kept, self.batch = model, tokens, kept, batch
        model.run_experts_one_by_one()
        self.stride = 2 if len(tokens) >= _MANY else 1
        self.runner = BatchRunner(model, tokens, batch)
        self.generator = torch.Generator().manual_seed(seed)

    def blocks(self, progress: Progress) -> Iterator[dict[str, Curvature]]:
        """Curvature of every block that is not done yet, the last first."""
        blocks = self.model.block_count
        if self.kept.backward is None:
            self._head(self._forward(progress))
        assert self.kept.backward is not None
        with progress("Curvature", blocks, " blocks") as advance:
            advance(blocks - self.kept.backward)
            for found in self._backward(self.kept.backward):
                yield found
                advance(1)

    def _backward(self, left: int) -> Iterator[dict[str, Curvature]]:
        """Curvature of the first `left` blocks, the last first; the next is asked for when one is taken."""
        for index in reversed(range(left)):
            with self.model.block(index) as block:
                found, gradient = self._backward_block(block, self.kept.entering(index))
            yield found
            self.kept.went_back(index, gradient)

    def _forward(self, progress: Progress) -> torch.Tensor:
        """H of every block, kept; the last block's outputs."""

        def keep(visit: BlockVisit) -> torch.Tensor:
            self.kept.enter(visit.block.index, visit.inputs)
            stacks = expert_stacks(visit.block)
            experts = {name: ExpertMoments(len(stack)) for name, stack in stacks.items()}

            def look(name: str, expert: int, inputs: torch.Tensor, _outputs: torch.Tensor) -> None:
                experts[name].add(expert, as_multiplied(inputs))

            with ExpertWatch(stacks, look):
                found, outputs = visit.observe(list(visit.block.linears), with_hessian=True)
            hessians = {name: value.hessian for name, value in found.items()}
            self.kept.moments(visit.block.index, hessians | expert_hessians(self.model.source, experts))
            return outputs

        first = self.kept.forward
        hidden = torch.from_numpy(np.array(self.kept.entering(first))) if first else None
        return sweep(
            self.model, self.tokens, keep, batch=self.batch, progress=progress, label="Forward", first_block=first,
            hidden=hidden,
        )  # fmt: skip

    def _head(self, last: torch.Tensor) -> None:
        """What the logits cost, kept with the gradient at the last block's outputs [sequences, length, width]."""
        inputs, squares, parts = MomentAccumulator(with_hessian=True), GradientSquares(), []
        for rows, hidden in head_pieces(self.model, last, self.batch):
            with torch.enable_grad():
                logits = self.model.logits(hidden, self.tokens[rows])
            gradient = gradient_at_logits(logits, self.generator)
            parts.append(torch.autograd.grad(logits, hidden, gradient)[0].cpu())
            inputs.add(self.model.head_inputs(hidden.detach(), self.tokens[rows]))
            squares.add(gradient)
        name = self.model.head_name or ""
        gradient = torch.cat(parts)[:: self.stride]
        self.kept.head(inputs.result(name).hessian, squares.result(name), self.model.block_count, gradient)

    def _backward_block(self, block: Block, entering: NDArray[np.float32]) -> tuple[dict[str, Curvature], torch.Tensor]:
        """A block's curvature, and the gradient at its inputs."""
        sums, parts, after = BackwardSums(block), [], self.kept.gradient(block.index + 1)
        for start in range(0, len(after), self.batch):
            rows = slice(start, min(start + self.batch, len(after)))
            some = torch.from_numpy(np.array(entering[:: self.stride][rows]))
            parts.append(sums.run(some, torch.from_numpy(np.array(after[rows])), self.runner))
        return self._curvatures(block.index, sums), torch.cat(parts)

    def _curvatures(self, index: int, sums: BackwardSums) -> dict[str, Curvature]:
        """A block's curvature, of the sums of both ways."""
        moments, after = self.kept.kept_moments(index), self.kept.gradient(index + 1)
        found = {
            name: Curvature(moments[name], total.result(name), total.joint())
            for name, total in sums.squares.items()
            if name in moments and not total.gives_more
        }
        for name, of_experts in sums.experts.items():
            outputs = of_experts.results(after.shape[0] * after.shape[1])
            for part in expert_parts(self.model.source, name) if outputs else ():
                found[part.name] = Curvature(moments[part.name], outputs[part.expert][part.start : part.stop].clone())
        return found

    def tables(self) -> dict[str, Curvature]:
        """Embedding and head: as one where they are tied, or where the model has only one of them."""
        head, table = self.model.head_name, self.model.embedding_name
        result = {} if head is None else {head: Curvature(*self.kept.kept_head())}
        if table is not None:
            rows = self._table_curvature(int(self.model.source.specs[table].shape[0]))
            result[table] = rows if head != table else add_curvatures(result[table], rows)
        return result

    def _table_curvature(self, vocabulary: int) -> Curvature:
        """An error in row t costs G₀ each time that token t is read; where none was taken back, the mean."""
        kept = torch.from_numpy(np.array(self.kept.gradient(0)))
        gradients = kept.reshape(-1, kept.shape[-1]).double()
        inner, squares = (gradients.T @ gradients) / len(gradients), gradients.square().mean(1)
        uses = torch.zeros(vocabulary, dtype=torch.float64)
        costs = squares.mean().repeat(self.tokens.numel()).reshape(self.tokens.shape)
        costs[:: self.stride] = squares.reshape(-1, self.tokens.shape[1])
        uses.index_add_(0, self.tokens.reshape(-1), costs.reshape(-1))
        scale = inner.diagonal().mean().clamp_min(1e-30)
        return Curvature((inner / scale).float(), (uses / self.tokens.numel()).float())


class _CrewRun(_Run):
    """The same with both passes run by a crew: a block is a stage on one worker, which sees the batches in order."""

    def __init__(self, run: _Run, crew: Crew) -> None:
        self.__dict__.update(run.__dict__)
        self._crew = crew

    def _context(self) -> BlockContext:
        return BlockContext.of(self.model, self.tokens, self.batch, one_by_one=True)

    def _forward(self, progress: Progress) -> torch.Tensor:
        from edgepack.quant.calibration.curvature_relay import ForwardLeg, open_forward

        first, blocks = self.kept.forward, self.model.block_count
        if first == 0:
            with self.model.shell():
                hidden = self.runner.map(lambda start, stop: self.model.embed(self.tokens[start:stop]))
            self.kept.enter(0, hidden)
        with progress("Forward", blocks - first, " blocks") as advance:
            leg = ForwardLeg(self.kept, self.batch, len(self.tokens), blocks)
            context = self._crew.share(self._context())
            for _block in self._crew.relay(
                open_forward, context, range(first, blocks), leg, need=stage_bytes(self.model)
            ):
                advance(1)
        assert leg.last is not None
        return leg.last

    def _backward(self, left: int) -> Iterator[dict[str, Curvature]]:
        from edgepack.quant.calibration.curvature_relay import BackwardLeg, open_backward

        context, count = self._crew.share(self._context()), len(self.kept.gradient(left))
        leg = BackwardLeg(self.kept, self.batch, count, self.stride)
        for index in self._crew.relay(open_backward, context, range(left)[::-1], leg, need=stage_bytes(self.model)):
            yield self._curvatures(index, leg.sums.pop(index))
            leg.went_back(index)


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
