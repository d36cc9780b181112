"""Second moments of what attention computes with, layer by layer: of queries, keys and values over a text.

Of a checkpoint, memory is one block's weights, the activations between two blocks and one layer's moments; of a model
that is in memory anyway, all layers' moments. Tokens are never kept. What spectra they have is left to
`attention_spectra`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from edgepack.errors import NumericError, UnsupportedModelError
from edgepack.progress import silent
from edgepack.quant.calibration.attention_watch import LookingVisitor, watched_attention
from edgepack.quant.calibration.blocks import BlockwiseModel
from edgepack.quant.calibration.sweep import sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from numpy.typing import NDArray
    from torch import nn

    from edgepack.model import Checkpoint
    from edgepack.progress import Progress
    from edgepack.quant.calibration.attention_watch import AttentionInputs
    from edgepack.quant.calibration.sweep import BlockVisit

    Floats = NDArray[np.float64]

Kind = Literal["q_before", "q", "k_before", "k", "v"]
KINDS: tuple[Kind, ...] = ("q_before", "q", "k_before", "k", "v")


@dataclass(frozen=True)
class SecondMoments:
    """Sums over vectors x that are the heads of one layer side by side, head 0 first.

    Attributes:
        heads: kv heads; the vectors have `heads` · head dimensions.
        count: vectors seen. Queries are counted once for each head that shares a key's head.
        total: Σ x, float64 [n].
        outer: Σ x xᵀ, float64 [n, n].
        first: float32 [m, n], the vectors of the first token of every sequence, which are among the counted.
    """

    heads: int
    count: int
    total: Floats
    outer: Floats
    first: NDArray[np.float32]

    @property
    def width(self) -> int:
        """n: dimensions of all heads together."""
        return len(self.total)

    @property
    def head_width(self) -> int:
        """Dimensions of one head."""
        return self.width // self.heads

    @cached_property
    def without_first(self) -> SecondMoments:
        """Over all vectors but those of sequences' first tokens, whose keys are often far from all others."""
        first = self.first.astype(np.float64)
        return SecondMoments(
            self.heads, self.count - len(first), self.total - first.sum(0), self.outer - first.T @ first,
            self.first[:0],
        )  # fmt: skip

    def of_head(self, head: int) -> SecondMoments:
        """Those of one head alone."""
        part = slice(head * self.head_width, (head + 1) * self.head_width)
        return SecondMoments(1, self.count, self.total[part], self.outer[part, part], self.first[:, part])

    @property
    def mean(self) -> Floats:
        """E[x], float64 [n]."""
        return self.total / max(self.count, 1)

    @property
    def raw(self) -> Floats:
        """E[x xᵀ], float64 [n, n]: what a projection without a mean must keep."""
        return self.outer / max(self.count, 1)

    @property
    def centred(self) -> Floats:
        """The covariance [n, n]."""
        return self.raw - np.outer(self.mean, self.mean)

    @property
    def standardised(self) -> Floats:
        """The correlations [n, n]; dimensions that never change count nothing."""
        covariance = self.centred
        variance = np.diagonal(covariance)
        moving = variance > 1e-12 * max(float(np.diagonal(self.raw).max(initial=0)), 1e-300)
        scale = np.where(moving, 1 / np.sqrt(np.where(moving, variance, 1)), 0)
        return covariance * scale * scale[:, None]


@dataclass(frozen=True)
class LayerMoments:
    """One layer's moments.

    Attributes:
        layer: its number, from 0.
        query_heads, kv_heads: of each.
        rotated: whether positions turn its keys.
        moments: by kind, as many kinds as were asked for; `q_before` and `k_before` are left out where a layer's
            attention is latent, and are `q` and `k` themselves where nothing is turned.
    """

    layer: int
    query_heads: int
    kv_heads: int
    rotated: bool
    moments: Mapping[Kind, SecondMoments]


class _Sum:
    """The sums of one kind, in float64; products run in float32 unless they are to be exact."""

    def __init__(self, *, exact: bool = False) -> None:
        self.products = torch.float64 if exact else torch.float32
        self.heads = self.count = 0
        self.total = self.outer = torch.zeros(0, dtype=torch.float64)
        self.first: list[torch.Tensor] = []

    def add(self, tensor: torch.Tensor, kv_heads: int) -> None:
        """Add [batch, heads, length, head]; heads that share a key's head are vectors of their own."""
        batch, heads, length, head = tensor.shape
        by_token = (
            tensor.to(self.products).reshape(batch, kv_heads, heads // kv_heads, length, head).permute(0, 3, 2, 1, 4)
        )
        rows = by_token.reshape(-1, kv_heads * head)
        if not self.heads:
            self.heads = kv_heads
            self.total = torch.zeros(rows.shape[1], dtype=torch.float64)
            self.outer = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
        self.count += len(rows)
        self.total += rows.sum(0, dtype=torch.float64).cpu()
        self.outer += (rows.T @ rows).cpu()
        self.first.append(by_token[:, 0].reshape(-1, rows.shape[1]).float().cpu())

    def result(self, what: str) -> SecondMoments:
        """What was summed; raises NumericError where it is no number."""
        if not torch.isfinite(self.outer).all():
            raise NumericError(f"{what}: expected finite numbers, got NaN or infinity")
        return SecondMoments(
            self.heads, self.count, self.total.numpy(), self.outer.numpy(), torch.cat(self.first).numpy()
        )


class _Summing(LookingVisitor):
    """Sums what goes by in one layer."""

    def __init__(self, kinds: Collection[Kind], *, exact: bool = False) -> None:
        self.kinds, self.exact = kinds, exact
        self.sums: dict[Kind, _Sum] = {}
        self.query_heads = self.kv_heads = 0
        self.rotated = False

    def look(self, inputs: AttentionInputs) -> None:
        """Add one batch."""
        self.query_heads, self.kv_heads = inputs.q.shape[1], inputs.k.shape[1]
        self.rotated = inputs.rotated
        for kind in self.kinds:
            tensor = getattr(inputs, kind)
            if tensor is not None:
                self.sums.setdefault(kind, _Sum(exact=self.exact)).add(tensor.detach(), self.kv_heads)

    def result(self, layer: int) -> LayerMoments:
        """The layer's moments."""
        found = {kind: one.result(f"layer {layer}, {kind}") for kind, one in self.sums.items()}
        return LayerMoments(layer, self.query_heads, self.kv_heads, self.rotated, found)


class _EveryLayer(LookingVisitor):
    """Sums what goes by in all layers of a model, each by itself."""

    def __init__(self, kinds: Collection[Kind]) -> None:
        self.kinds = kinds
        self.layers: dict[int, _Summing] = {}

    def look(self, inputs: AttentionInputs) -> None:
        """Add one batch of one layer."""
        self.layers.setdefault(inputs.layer, _Summing(self.kinds, exact=True)).look(inputs)


def running_moments(
    model: nn.Module, sequences: Iterable[torch.Tensor], *, kinds: Collection[Kind] = KINDS
) -> tuple[LayerMoments, ...]:
    """Moments of every layer of a model that is in memory whole; products in float64. Does not modify the model.

    Args:
        model: a causal language model of transformers.
        sequences: token ids [length] each, run one after the other.
        kinds: what to sum.

    Raises:
        UnsupportedModelError: the model has no attention, or one that cannot be watched.
        NumericError: NaN or infinity; the text names the layer.
    """
    visitor = _EveryLayer(kinds)
    with watched_attention(model, visitor), torch.inference_mode():
        for sequence in sequences:
            model(input_ids=sequence[None].to(model.device), use_cache=False)
    if not visitor.layers:
        kind = model.config.get_text_config().model_type
        raise UnsupportedModelError(f"model type '{kind}': its attention runs where it cannot be watched")
    return tuple(visitor.layers[index].result(index) for index in sorted(visitor.layers))


def attention_moments(
    checkpoint: Checkpoint,
    tokens: NDArray[np.int64],
    take: Callable[[LayerMoments], None],
    *,
    kinds: Collection[Kind] = KINDS,
    device: str = "cpu",
    batch: int = 8,
    progress: Progress = silent,
) -> int:
    """Run `checkpoint` over `tokens` and hand every layer's moments to `take`, in the model's order.

    Does not modify `checkpoint`. Layers without attention (of hybrid models) are passed over.

    Args:
        checkpoint: a causal language model that transformers can run.
        tokens: [sequences, length], each a text from its beginning.
        take: called once a layer; what it does not keep is forgotten.
        kinds: what to sum; each kind costs a product of its own.
        device: a torch device.
        batch: sequences at a time; halved when the device's memory is full.
        progress: told of each block done.

    Returns:
        How many layers were handed over.

    Raises:
        UnsupportedModelError: the model has no attention, or one that cannot be watched.
        NumericError: NaN or infinity in weights or activations; the text names the layer.
        ResourceError: the device's memory is full with one sequence at a time.
    """
    model = BlockwiseModel(checkpoint, device)
    seen = 0

    def look(visit: BlockVisit) -> torch.Tensor:
        nonlocal seen
        while True:
            size, summing = visit.runner.batch, _Summing(kinds)
            with watched_attention(model.model, summing):
                outputs = visit.outputs()
            if visit.runner.batch == size:  # else a batch was run twice and counted twice
                break
        if summing.sums:
            take(summing.result(visit.block.index))
            seen += 1
        return outputs

    with watched_attention(model.model, _Summing(())):
        pass  # refuses before any weight is read
    sweep(model, torch.from_numpy(np.ascontiguousarray(tokens)), look, batch=batch, progress=progress, label="Spectra")
    if not seen:
        raise UnsupportedModelError(f"model type '{checkpoint.config.get('model_type')}': no layer has attention")
    return seen
