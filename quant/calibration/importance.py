"""Importance matrices: for each weight, the sum of squares of every input channel over a text.

Values only: files are left to `importance_file`, running a model to `edgepack.edge.llama.importance_collect`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import CalibrationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_EXPERT_DIMENSIONS = 3
_BLOCK_TENSORS = 2
_ACTIVE = 1e-5  # llama.cpp's threshold for a channel that does anything


@dataclass(frozen=True)
class ImportanceEntry:
    """What was seen of one weight's inputs.

    Attributes:
        sums: sum of x² per input channel; float64, shape [matrices, columns], one matrix or one an expert.
        counts: tokens that each sum holds; int64, shape [matrices].
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def means(self) -> NDArray[np.float32]:
        """Mean x², float32 [matrices, columns]; ones for an expert that no token was sent to, as llama.cpp has it."""
        counted = np.maximum(self.counts, 1)[:, None]
        means = np.where(self.counts[:, None] > 0, self.sums / counted, 1.0)
        return means.astype(np.float32)

    def added(self, other: ImportanceEntry, name: str) -> ImportanceEntry:
        """Both together; `name` is the weight's, for messages.

        Raises:
            CalibrationError: they are of different shapes.
        """
        if self.sums.shape != other.sums.shape:
            shapes = f"expected {list(self.sums.shape)}, got {list(other.sums.shape)}"
            raise CalibrationError(f"importance matrix: tensor '{name}': {shapes}: another model's")
        return ImportanceEntry(self.sums + other.sums, self.counts + other.counts)


@dataclass(frozen=True)
class ImportanceMatrix:
    """An importance matrix of a model.

    Attributes:
        entries: GGUF name of a weight → what was seen.
        chunk_count: pieces of text in all.
        chunk_size: tokens of a piece.
        datasets: names of the texts.
    """

    entries: Mapping[str, ImportanceEntry]
    chunk_count: int
    chunk_size: int
    datasets: tuple[str, ...] = ()

    def weights(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
        """The importance of every tensor that has some, in the form that an export takes.

        Args:
            shapes: the model's tensors: name → row-major shape.

        Returns:
            name → float32 [columns], or [experts, columns] for a stack of experts.

        Raises:
            CalibrationError: an entry of another shape than its tensor, or nothing in common: another model's.
        """
        found: dict[str, NDArray[np.float32]] = {}
        for name, entry in self.entries.items():
            if name in shapes:
                found[name] = _fitted(name, entry, shapes[name])
        if not found:
            raise CalibrationError("importance matrix: it names no tensor of this model: it was made for another")
        return found


def _fitted(name: str, entry: ImportanceEntry, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The means of an entry for a tensor of `shape`; one matrix serves every expert where that is all there is."""
    means = entry.means
    stacked = len(shape) == _EXPERT_DIMENSIONS
    experts = shape[0] if stacked else 1
    if means.shape[0] == 1 and stacked:
        means = np.repeat(means.reshape(-1, shape[-1]), experts, axis=0) if means.shape[1] == shape[-1] else means
    if means.size == experts * shape[-1]:
        means = means.reshape(experts, shape[-1])
    if means.shape != (experts, shape[-1]):
        raise CalibrationError(
            f"importance matrix: tensor '{name}' is {list(shape)}, the matrix has {list(means.shape)}: "
            "it was made for another model"
        )
    return means if stacked else means[0]


def merge(matrices: Sequence[ImportanceMatrix]) -> ImportanceMatrix:
    """All together, each weighted by its tokens.

    Raises:
        CalibrationError: none given, or two of different models.
    """
    if not matrices:
        raise CalibrationError("importance matrix: expected at least one to merge")
    entries: dict[str, ImportanceEntry] = {}
    for matrix in matrices:
        for name, entry in matrix.entries.items():
            entries[name] = entries[name].added(entry, name) if name in entries else entry
    datasets = dict.fromkeys(name for matrix in matrices for name in matrix.datasets)
    count = sum(matrix.chunk_count for matrix in matrices)
    return replace(matrices[0], entries=entries, chunk_count=count, datasets=tuple(datasets))


@dataclass(frozen=True)
class EntryStatistics:
    """What an entry says of its layer, in the terms of llama.cpp's `--show-statistics`.

    Attributes:
        name: the weight.
        total: sum of the mean squares.
        mean, deviation, smallest, largest: of the mean squares over channels.
        active: share of channels with a mean square over 1e-5.
        entropy: of the mean squares as a distribution, in bits.
        evenness: entropy over its largest value, log2(channels).
        outliers: share of channels more than one deviation above the mean.
        likeness: cosine with the same weight one block before; None for the first block.
        tokens: seen, the least over experts.
    """

    name: str
    total: float
    mean: float
    deviation: float
    smallest: float
    largest: float
    active: float
    entropy: float
    evenness: float
    outliers: float
    likeness: float | None
    tokens: int


def statistics(matrix: ImportanceMatrix) -> list[EntryStatistics]:
    """Of every entry that saw tokens, in the matrix's order; experts without a token are left out of their stack."""
    return [_entry_statistics(name, matrix) for name, entry in matrix.entries.items() if entry.counts.any()]


def _entry_statistics(name: str, matrix: ImportanceMatrix) -> EntryStatistics:
    entry = matrix.entries[name]
    means = entry.means[entry.counts > 0].astype(np.float64).reshape(-1)
    total, mean, deviation = means.sum(), means.mean(), means.std()
    shares = means[means > 0] / total if total > 0 else np.ones(1)
    entropy = float(-(shares * np.log2(shares)).sum())
    return EntryStatistics(
        name=name,
        total=float(total),
        mean=float(mean),
        deviation=float(deviation),
        smallest=float(means.min()),
        largest=float(means.max()),
        active=float((means > _ACTIVE).mean()),
        entropy=entropy,
        evenness=entropy / float(np.log2(means.size)) if means.size > 1 else 1.0,
        outliers=float((means > mean + deviation).mean()) if deviation > 0 else 0.0,
        likeness=_likeness(name, matrix),
        tokens=int(entry.counts.min()),
    )


def _likeness(name: str, matrix: ImportanceMatrix) -> float | None:
    """Cosine between this entry and the same weight's in the block before."""
    parts = name.split(".", _BLOCK_TENSORS)
    if len(parts) <= _BLOCK_TENSORS or parts[0] != "blk" or not parts[1].isdigit():
        return None
    before = matrix.entries.get(f"blk.{int(parts[1]) - 1}.{parts[2]}")
    own = matrix.entries[name]
    if before is None or before.sums.shape != own.sums.shape:
        return None
    length = float(np.linalg.norm(own.sums) * np.linalg.norm(before.sums))
    return float((own.sums * before.sums).sum()) / length if length else None


@dataclass
class ImportanceSums:
    """Sums while they grow: mutable, for collectors."""

    entries: dict[str, ImportanceEntry] = field(default_factory=dict)

    def add(self, name: str, sums: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        """Add [matrices, columns] and [matrices] to the entry `name`."""
        entry = self.entries.get(name)
        if entry is None:
            self.entries[name] = ImportanceEntry(sums.copy(), counts.copy())
            return
        entry.sums[...] += sums
        entry.counts[...] += counts
