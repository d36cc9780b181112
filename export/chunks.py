"""A planned tensor in pieces, and the bytes of each: rows are read, converted, and every row by itself.

In which order pieces are made and where they go is `gguf_file`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import NumericError
from edgepack.export.rows import StoredBlocks
from edgepack.quant.codecs.ggml.codec import quantize_rows, valid_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edgepack.export.plan import PlannedTensor

# Weights in a chunk: 4 MB of float32, so that a few in flight stay small and a call lasts some milliseconds.
CHUNK_WEIGHTS = 1 << 20


@dataclass(frozen=True)
class Chunk:
    """Rows `start` to `stop` (not included) of a tensor; never across two experts."""

    tensor: PlannedTensor
    start: int
    stop: int

    def encode(self) -> NDArray[np.uint8]:
        """Read and convert the rows: uint8, shape [rows, bytes of a row].

        Raises:
            NumericError: a weight is not finite, or too large for the type.
        """
        info = self.tensor.info
        stored = self.tensor.rows
        if isinstance(stored, StoredBlocks) and stored.stored_type is info.type:
            return stored.read_blocks(self.start, self.stop)
        rows = self.tensor.rows.read(self.start, self.stop)
        blocks = quantize_rows(info.type, rows, self._importance(), self.tensor.quantizer)
        if not valid_rows(info.type, blocks):
            largest = float(np.abs(rows).max())
            raise NumericError(
                f"tensor '{info.name}': weights up to {largest:.6g} do not fit into {info.type.name}: "
                "choose a type with a larger range for it, such as bf16"
            )
        return blocks

    def _importance(self) -> NDArray[np.float32] | None:
        weights = self.tensor.importance
        if weights is None or weights.ndim == 1:
            return weights
        rows_per_expert = self.tensor.info.rows // weights.shape[0]
        expert: NDArray[np.float32] = weights[self.start // rows_per_expert]
        return expert


def chunks(tensor: PlannedTensor) -> Iterator[Chunk]:
    """A tensor in pieces of about a million weights, aligned to experts."""
    info = tensor.info
    rows_per_expert = info.rows // info.shape[0] if len(info.shape) == 3 else info.rows
    step = max(1, CHUNK_WEIGHTS // info.shape[-1])
    for origin in range(0, info.rows, rows_per_expert):
        end = origin + rows_per_expert
        for start in range(origin, end, step):
            yield Chunk(tensor, start, min(start + step, end))
