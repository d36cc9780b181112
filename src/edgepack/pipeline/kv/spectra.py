"""Spectra of a checkpoint's attention over a text, and what caches of fewer dimensions would lose. Needs torch.

What is summed and projected is `quant.calibration`'s; text is cut as for caches of llama.cpp.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgepack.edge.fidelity.agreement import compare
from edgepack.edge.fidelity.scorers.blockwise import BlockwiseScorer
from edgepack.edge.fidelity.scorers.torch import CheckpointTokenizer
from edgepack.edge.fidelity.statistics import ClusteredMean
from edgepack.progress import silent
from edgepack.quant.calibration.attention_moments import attention_moments
from edgepack.quant.calibration.attention_projection import ProjectedCache, check_dimensions, layer_bases
from edgepack.quant.calibration.attention_spectra import layer_spectra
from edgepack.quant.calibration.attention_watch import watched_attention
from edgepack.quant.calibration.blocks import BlockwiseModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edgepack.edge.fidelity.scorers.scorer import Chunk, Chunking
    from edgepack.model import Checkpoint
    from edgepack.progress import Progress
    from edgepack.quant.calibration.attention_moments import LayerMoments
    from edgepack.quant.calibration.attention_projection import Basis, Part
    from edgepack.quant.calibration.attention_spectra import LayerSpectra

HELD: tuple[Part, ...] = ("k_before", "v")  # what a cache of fewer dimensions would hold: keys before rotation


@dataclass(frozen=True)
class DimensionCost:
    """A cache that holds keys (before rotation) and values of every layer in `dimensions` each.

    Attributes:
        dimensions: of all heads together, of keys and of values.
        kept_k, kept_v: share of the centred energy that they keep, the mean over layers, on the text of the bases.
        bytes_per_token: in float16.
        kl, kl_high: mean KL(whole cache ‖ this) in nats a token on other text, and the upper end of its interval.
        agreement: share of equal first choices.
    """

    dimensions: int
    kept_k: float
    kept_v: float
    bytes_per_token: int
    kl: float
    kl_high: float
    agreement: float


@dataclass(frozen=True)
class Spectra:
    """What a pass over a text gave.

    Attributes:
        layers: those with attention, in order.
        tokens: that were read.
        costs: of caches of fewer dimensions.
    """

    layers: tuple[LayerSpectra, ...]
    tokens: int
    costs: tuple[DimensionCost, ...] = ()


def chunks_of(checkpoint: Checkpoint, text: str, chunking: Chunking) -> list[Chunk]:
    """A text cut by the checkpoint's own tokenizer.

    Raises:
        UsageError: it is shorter than a chunk.
        TokenizerError: the folder's tokenizer cannot be loaded.
    """
    tokenizer = CheckpointTokenizer(checkpoint.path)
    return list(chunking.chunks(tokenizer.tokenize(text), tokenizer.bos))


def _ids(chunks: Sequence[Chunk]) -> NDArray[np.int64]:
    return np.stack([chunk.tokens for chunk in chunks]).astype(np.int64)


def take_spectra(
    checkpoint: Checkpoint,
    chunks: Sequence[Chunk],
    dims: Sequence[int] = (),
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> Spectra:
    """Spectra of every layer; and for each of `dims` what a cache of so many dimensions would lose.

    Directions come from every other chunk, losses from the chunks between. Memory is one block, the activations
    between two blocks and one layer's moments; with `dims` one basis a layer too.

    Args:
        checkpoint: what is run.
        chunks: of one length; with `dims` at least two.
        dims: dimensions of keys and of values, all heads of a layer together.
        device: torch's, of the spectra.
        progress: told of blocks, and of chunks.

    Raises:
        UsageError: more dimensions than a layer has.
        UnsupportedModelError: the model has no attention, or one that cannot be watched or projected.
        NumericError: NaN or infinity; the text names the layer.
    """
    found: list[LayerSpectra] = []
    attention_moments(
        checkpoint, _ids(chunks), lambda layer: found.append(layer_spectra(layer)), device=device, progress=progress
    )
    costs = _dimension_costs(checkpoint, chunks, dims, device, progress) if dims else ()
    return Spectra(tuple(found), sum(len(chunk.tokens) for chunk in chunks), costs)


def _dimension_costs(
    checkpoint: Checkpoint, chunks: Sequence[Chunk], dims: Sequence[int], device: str, progress: Progress
) -> tuple[DimensionCost, ...]:
    bases = take_bases(checkpoint, chunks[::2], device=device, progress=progress)
    for dimensions in dims:
        check_dimensions(dimensions, bases, HELD)
    losses = projection_losses(
        checkpoint, chunks[1::2], [ProjectedCache(bases, dimensions, HELD) for dimensions in dims], progress
    )
    return tuple(
        DimensionCost(
            dimensions, kept(bases, "k_before", dimensions), kept(bases, "v", dimensions),
            2 * 2 * dimensions * len(bases), loss.kl.mean, loss.kl.interval()[1], loss.agreement.mean,
        )
        for dimensions, loss in zip(dims, losses, strict=True)
    )  # fmt: skip


def take_bases(
    checkpoint: Checkpoint,
    chunks: Sequence[Chunk],
    *,
    centred: bool = True,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[int, dict[Part, Basis]]:
    """Layer → part → its strongest directions on a text; raises as `attention_moments`."""
    bases: dict[int, dict[Part, Basis]] = {}

    def take(layer: LayerMoments) -> None:
        bases[layer.layer] = layer_bases(layer, centred=centred)

    attention_moments(checkpoint, _ids(chunks), take, kinds=("k_before", "k", "v"), device=device, progress=progress)
    return bases


def kept(bases: Mapping[int, Mapping[Part, Basis]], part: Part, dimensions: int) -> float:
    """Share of a part's energy in `dimensions` directions of all heads together, the mean over layers."""
    return float(np.mean([known[part].kept(dimensions) for known in bases.values()]))


@dataclass
class Loss:
    """What a projection loses over a text."""

    kl: ClusteredMean = field(default_factory=ClusteredMean)
    agreement: ClusteredMean = field(default_factory=ClusteredMean)


def projection_losses(
    checkpoint: Checkpoint, chunks: Sequence[Chunk], caches: Sequence[ProjectedCache], progress: Progress = silent
) -> list[Loss]:
    """What each cache loses against the whole one, in float32; memory is two chunks' logits.

    Args:
        checkpoint: what is run.
        chunks: that are scored.
        caches: in whose place keys and values are put.
        progress: told of chunks.
    """
    model = BlockwiseModel(checkpoint)
    scorer = BlockwiseScorer(model, CheckpointTokenizer(checkpoint.path), "")
    losses = [Loss() for _cache in caches]
    with progress("projected caches", len(chunks) * (len(caches) + 1), " evaluations") as advance:
        for chunk in chunks:
            expected = None
            for cache, loss in zip((None, *caches), (None, *losses), strict=True):
                with nullcontext() if cache is None else watched_attention(model.model, cache):
                    logits = scorer.score(chunk)
                advance(1)
                if expected is None or loss is None:
                    expected = logits
                    continue
                measures = compare(expected, logits, chunk.scored_targets, chunk.start + chunk.first)
                loss.kl.add(float(measures.divergence.sum()), len(measures))
                loss.agreement.add(float(measures.agrees.sum()), len(measures))
    return losses
