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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgepack.errors import CalibrationError, NumericError, UnsupportedModelError
from edgepack.progress import silent
from edgepack.quant.calibration.blocks import BlockwiseModel
from edgepack.quant.calibration.checkpoint_names import expert_parts
from edgepack.quant.calibration.curvature_progress import CurvatureProgress
from edgepack.quant.calibration.expert_curvature import ExpertMoments, ExpertSquares, ExpertWatch, expert_stacks
from edgepack.quant.calibration.statistics import MomentAccumulator
from edgepack.quant.calibration.sweep import BatchRunner, sweep
from edgepack.quant.row_feedback import JOINT_LEFT, RowFeedback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.model import Checkpoint
    from edgepack.progress import Progress
    from edgepack.quant.calibration.blocks import Block
    from edgepack.quant.calibration.sweep import BlockVisit


_LOGITS = 1 << 25  # at a time: 128 MB in float32, and a few times that with their gradients
_TOKENS_AN_OUTPUT = 4  # that G needs, so that what it says of rows together holds of other tokens
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
    kept = CurvatureProgress(scratch, (tokens, seed, sorted(checkpoint.tensors.specs)))
    run = _Run(BlockwiseModel(checkpoint, device), torch.from_numpy(tokens), kept, batch, seed)
    yield from run.blocks(progress)
    yield run.tables()
    kept.clear()


def refuse_shared_keys(config: Mapping[str, Any]) -> None:
    """Refuse models whose last layers read keys and values of earlier ones: blocks are run back one by one.

    Args:
        config: of config.json.

    Raises:
        UnsupportedModelError: there are such layers.
    """
    text = config.get("text_config")
    shared = (text if isinstance(text, dict) else config).get("num_kv_shared_layers")
    if shared:
        raise UnsupportedModelError(
            f"wire: {shared} layers share keys and values of earlier ones, which curvature, measured block by block,"
            " does not follow: use a gguf-* target for this model"
        )


class _Squares:
    """Mean squares of gradients, in float64 on the CPU, and mean products where outputs are not too many.

    Args:
        most: outputs for which products are kept: as many as inputs, so that G is no larger than H.
    """

    def __init__(self, most: int = 0) -> None:
        self.most = most
        self.total: torch.Tensor | None = None
        self.products: torch.Tensor | None = None
        self.count = 0
        self.gives_more = False  # than one tensor, as routers do that choose by themselves

    def add(self, gradients: torch.Tensor) -> None:
        """Add gradients [..., out]."""
        flat = gradients.detach().reshape(-1, gradients.shape[-1])
        squares = flat.square().sum(0).double().cpu()
        self.total = squares if self.total is None else self.total + squares
        self.count += len(flat)
        if flat.shape[-1] <= self.most:
            products = (flat.T.float() @ flat.float()).double().cpu()
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
            for index in reversed(range(self.kept.backward)):
                with self.model.block(index) as block:
                    found, gradient = self._backward_block(block, self.kept.entering(index))
                yield found
                self.kept.went_back(index, gradient)
                advance(1)

    def _forward(self, progress: Progress) -> torch.Tensor:
        """H of every block, kept; the last block's outputs."""

        def keep(visit: BlockVisit) -> torch.Tensor:
            self.kept.enter(visit.block.index, visit.inputs)
            stacks = expert_stacks(visit.block)
            experts = {name: ExpertMoments(len(stack)) for name, stack in stacks.items()}
            with ExpertWatch(stacks, lambda name, expert, inputs, _outputs: experts[name].add(expert, inputs)):
                found, outputs = visit.observe(list(visit.block.linears), with_hessian=True)
            hessians = {name: value.hessian for name, value in found.items()}
            for name, moments in experts.items():
                ofs = [hessian.numpy() for hessian in moments.results()]
                hessians |= {part.name: ofs[part.expert] for part in expert_parts(self.model.source, name) if ofs}
            self.kept.moments(visit.block.index, hessians)
            return outputs

        first = self.kept.forward
        hidden = torch.from_numpy(np.array(self.kept.entering(first))) if first else None
        return sweep(
            self.model, self.tokens, keep, batch=self.batch, progress=progress, label="Forward", first_block=first,
            hidden=hidden,
        )  # fmt: skip

    def _head(self, last: torch.Tensor) -> None:
        """What the logits cost, kept with the gradient at the last block's outputs [sequences, length, width]."""
        vocabulary = int(self.model.source.specs[self.model.head_name].shape[0]) if self.model.head_name else 1
        size = max(1, min(self.batch, _LOGITS // (vocabulary * self.tokens.shape[1])))
        inputs, squares, parts = MomentAccumulator(with_hessian=True), _Squares(), []
        with self.model.shell():
            for start in range(0, len(self.tokens), size):
                rows = slice(start, min(start + size, len(self.tokens)))
                hidden = last[rows].to(self.model.device).requires_grad_(True)
                with torch.enable_grad():
                    logits = self.model.logits(hidden, self.tokens[rows])
                gradient = self._logit_gradient(logits)
                parts.append(torch.autograd.grad(logits, hidden, gradient)[0].cpu())
                inputs.add(self.model.head_inputs(hidden.detach(), self.tokens[rows]))
                squares.add(gradient)
        name = self.model.head_name or ""
        gradient = torch.cat(parts)[:: self.stride]
        self.kept.head(inputs.result(name).hessian, squares.result(name), self.model.block_count, gradient)

    def _logit_gradient(self, logits: torch.Tensor) -> torch.Tensor:
        """Of -log p(label) for labels drawn from the model's own distribution: p - onehot(label)."""
        flat = logits.detach().float().reshape(-1, logits.shape[-1]).softmax(-1)
        labels = draw_labels(flat, self.generator)
        flat[torch.arange(len(flat), device=flat.device), labels] -= 1
        return flat.reshape(logits.shape)

    def _backward_block(self, block: Block, entering: NDArray[np.float32]) -> tuple[dict[str, Curvature], torch.Tensor]:
        """A block's curvature, and the gradient at its inputs."""
        moments = self.kept.kept_moments(block.index)
        squares = {name: _Squares(len(moments[name]) if name in moments else 0) for name in block.linears}
        handles = [module.register_forward_hook(_observer(squares[name])) for name, module in block.linears.items()]
        stacks = expert_stacks(block)
        experts = {name: ExpertSquares(len(stack)) for name, stack in stacks.items()}

        def look(name: str, expert: int, _inputs: torch.Tensor, outputs: torch.Tensor) -> None:
            if outputs.requires_grad:
                outputs.register_hook(lambda gradient: experts[name].add(expert, gradient))

        parts, after = [], self.kept.gradient(block.index + 1)
        try:
            for start in range(0, len(after), self.batch):
                rows = slice(start, min(start + self.batch, len(after)))
                some = entering[:: self.stride][rows]
                hidden = torch.from_numpy(np.array(some)).to(self.model.device).requires_grad_(True)
                with torch.enable_grad(), ExpertWatch(stacks, look):
                    output = block.run(hidden, self.runner.calls(len(hidden))[block.index])
                gradient = torch.from_numpy(np.array(after[rows])).to(hidden.device)
                parts.append(torch.autograd.grad(output, hidden, gradient)[0].cpu())
        finally:
            for handle in handles:
                handle.remove()
        found = {
            name: Curvature(moments[name], total.result(name), total.joint())
            for name, total in squares.items()
            if name in moments and not total.gives_more
        }
        for name, of_experts in experts.items():
            outputs = of_experts.results(after.shape[0] * after.shape[1])
            for part in expert_parts(self.model.source, name) if outputs else ():
                found[part.name] = Curvature(moments[part.name], outputs[part.expert][part.start : part.stop].clone())
        return found, torch.cat(parts)

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


def draw_labels(probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One label for each distribution [tokens, vocabulary], by inverting its cumulative sums: int64 [tokens]."""
    sums = probabilities.cumsum(-1)
    levels = torch.rand(len(sums), 1, generator=generator).to(sums.device) * sums[:, -1:]
    return torch.searchsorted(sums, levels, right=True)[:, 0].clamp_max(sums.shape[-1] - 1)


def _observer(squares: _Squares) -> Callable[[Any, tuple[torch.Tensor, ...], Any], None]:
    """A forward hook: takes the gradient at the outputs when it comes."""

    def look(_module: Any, _arguments: tuple[torch.Tensor, ...], output: Any) -> None:
        if isinstance(output, torch.Tensor):
            output.register_hook(squares.add)
        else:
            squares.gives_more = True

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
