"""Matrices that read one input, as one tall matrix whose rows are read piece by piece, folded and with their steps.

They share their feedback factor, so one sweep rounds them all; pieces bound the memory that a large embedding takes.
The sweep and the file are left to `wire`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.quant.wire.grid import ladder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from edgepack.export.plan import PlannedTensor
    from edgepack.export.rows import Rows
    from edgepack.export.wire.layer import FoldedLayer

PIECE_WEIGHTS = 1 << 24  # float32 weights of a piece: 64 MB, and a few times that while they are swept
_SAMPLE_ROWS = 1024
_RUN = 32  # consecutive rows of a sample, read at once


@dataclass(frozen=True)
class Span:
    """Rows `start` (included) to `stop` (not included) of one member."""

    tensor: PlannedTensor
    start: int
    stop: int


@dataclass(frozen=True)
class Piece:
    """Some rows of a stack.

    Attributes:
        spans: whose rows they are, in order.
        weights: folded, float32 [rows, in].
        relative: the rows' relative steps, float64 [rows].
    """

    spans: tuple[Span, ...]
    weights: torch.Tensor
    relative: torch.Tensor

    @property
    def heights(self) -> list[int]:
        """Rows of each span."""
        return [span.stop - span.start for span in self.spans]


class WireStack:
    """The members of an input group.

    Args:
        members: their plans, of one type and width.
        sources: GGUF name → unfolded rows.
        layer: the folds.
        relative: GGUF name → relative steps of its unfolded rows, float64 [out].
        mixing: what unfolded rows are multiplied with from the right, float64 [in, in]; None for nothing.
    """

    def __init__(
        self,
        members: Sequence[PlannedTensor],
        sources: Mapping[str, Rows],
        layer: FoldedLayer,
        relative: Mapping[str, torch.Tensor],
        mixing: NDArray[np.float64] | None = None,
    ) -> None:
        self.members, self._sources, self._layer, self._mixing = members, sources, layer, mixing
        self._relative = {name: self._folded_steps(name, steps) for name, steps in relative.items()}
        self.columns = layer.columns.get(members[0].info.name)

    def _folded_steps(self, name: str, steps: torch.Tensor) -> torch.Tensor:
        folds = self._layer.rows.get(name)
        return steps if folds is None else ladder(steps * torch.from_numpy(folds))

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.members[0].info.shape[-1])

    @property
    def experts(self) -> int:
        """Experts whose matrices, one behind the other, are the only member; 1 where there are none."""
        shape = self.members[0].info.shape
        return shape[0] if len(shape) == 3 else 1

    def expert(self, number: int) -> Piece:
        """All rows of one expert."""
        per = self.rows // self.experts
        return self._piece([Span(self.members[0], number * per, (number + 1) * per)])

    @property
    def rows(self) -> int:
        """Rows of all members."""
        return sum(tensor.info.rows for tensor in self.members)

    def sample(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs of rows spread over all members, [at most about 1024, in], and their relative steps."""
        stride = _RUN * max(1, self.rows // _SAMPLE_ROWS)
        spans = (
            Span(tensor, start, min(start + _RUN, tensor.info.rows))
            for tensor in self.members
            for start in range(0, tensor.info.rows, stride)
        )
        weights, steps = zip(*map(self._read, spans), strict=True)
        return torch.cat(weights), torch.cat(steps)

    def pieces(self, unit: int) -> Iterator[Piece]:
        """All rows in order, cut at multiples of `unit` rows of a member."""
        spans: list[Span] = []
        room = most = max(unit, PIECE_WEIGHTS // self.width // unit * unit)
        for tensor in self.members:
            for start in range(0, tensor.info.rows, most):
                span = Span(tensor, start, min(start + most, tensor.info.rows))
                if spans and span.stop - start > room:
                    yield self._piece(spans)
                    spans, room = [], most
                spans.append(span)
                room -= span.stop - start
        yield self._piece(spans)

    def _piece(self, spans: Sequence[Span]) -> Piece:
        parts = [self._read(span) for span in spans]
        return Piece(
            tuple(spans), torch.cat([weights for weights, _ in parts]), torch.cat([steps for _, steps in parts])
        )

    def _read(self, span: Span) -> tuple[torch.Tensor, torch.Tensor]:
        name, rows = span.tensor.info.name, slice(span.start, span.stop)
        weights = self._sources[name].read(span.start, span.stop).astype(np.float64)
        if self._mixing is not None:
            weights = weights @ self._mixing
        if self.columns is not None:
            weights /= self.columns
        if name in self._layer.rows:
            weights *= self._layer.rows[name][rows, None]
        return torch.from_numpy(weights.astype(np.float32)), self._relative[name][rows]
