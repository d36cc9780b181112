"""How two embedders agree on the same texts: the angle of each embedding, and what is found nearest. Arrays only.

Where embeddings come from is `api.embedders`' business.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.edge.fidelity.gates import GateResult
from edgepack.edge.fidelity.statistics import ClusteredMean
from edgepack.errors import CheckFailedError, NumericError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEIGHBOURS = 10


@dataclass(frozen=True)
class EmbeddingAgreement:
    """Two embedders on the same texts.

    Attributes:
        texts: how many.
        dimensions: of an embedding.
        mean_cosine, least_cosine: between both embeddings of a text, -1 to 1.
        low_cosine: 5 % of the texts are below it.
        retrieval_agreement: share of texts for which both find the same other text nearest, by cosine.
        retrieval_interval: its 95 % interval.
        overlap: mean share of the ten nearest (fewer of few texts) that both have.
    """

    texts: int
    dimensions: int
    mean_cosine: float
    least_cosine: float
    low_cosine: float
    retrieval_agreement: float
    retrieval_interval: tuple[float, float]
    overlap: float

    def gate(self, least: float | None) -> tuple[GateResult, ...]:
        """Whether the lower end of the retrieval's interval reaches a bar; nothing without one."""
        if least is None:
            return ()
        low = self.retrieval_interval[0]
        detail = (
            f"retrieval agreement {self.retrieval_agreement:.4g}, lower end of the interval {low:.4g}, must be at least"
            f" {least:.4g}"
        )
        return (GateResult("min-agreement", low >= least, detail),)

    def json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compare_embeddings(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> EmbeddingAgreement:
    """Hold embeddings [texts, dimensions] against those of the same texts.

    Raises:
        UsageError: fewer than three texts: there is no choice of a nearest one.
        CheckFailedError: another number of dimensions.
        NumericError: NaN, infinity, or an embedding that is zero.
    """
    if len(reference) < 3:
        raise UsageError(f"embeddings: expected at least three texts, got {len(reference)}")
    if reference.shape != candidate.shape:
        raise CheckFailedError(f"embeddings: {candidate.shape[1]} dimensions, the original has {reference.shape[1]}")
    ours, theirs = _unit(reference, "the original"), _unit(candidate, "the file")
    cosines = (ours * theirs).sum(axis=1)
    count = min(NEIGHBOURS, len(reference) - 1)
    nearest, found = _nearest(ours, count), _nearest(theirs, count)
    same = ClusteredMean()
    for equal in nearest[:, 0] == found[:, 0]:
        same.add(float(equal), 1)
    overlap = [len(set(a) & set(b)) / count for a, b in zip(nearest.tolist(), found.tolist(), strict=True)]
    return EmbeddingAgreement(
        len(reference), int(reference.shape[1]), float(cosines.mean()), float(cosines.min()),
        float(np.quantile(cosines, 0.05)), same.mean, same.share_interval(), float(np.mean(overlap)),
    )  # fmt: skip


def _unit(vectors: NDArray[np.float32], whose: str) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise NumericError(f"embeddings: of text {int(np.argmin(lengths))} {whose} makes no direction")
    unit: NDArray[np.float64] = wide / lengths
    return unit


def _nearest(unit: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The `count` nearest other texts of each, nearest first; the earlier one among equals."""
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]
