"""Row expressions read backwards: a family's rules say how GGUF tensors are made, this what they were made of.

Nothing is read here; the answers are rows again, lazy as those of `export.arranged_rows`. Which rules there are is data
in `export.architectures`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import UnsupportedModelError
from edgepack.export import expert_rows, row_functions
from edgepack.export.arranged_rows import (
    JoinedRows,
    PermutedRows,
    PickedRows,
    ReshapedRows,
    ScaledRows,
    ShiftedRows,
    SlicedExperts,
    SlicedRows,
    TransposedRows,
)
from edgepack.export.backwards.assembled import AssembledRows, Piece
from edgepack.export.row_functions import (
    INVERSES,
    MappedRows,
    PaddedRows,
    PermutedColumns,
    PickedColumns,
    RefoldedRows,
    RowScaledRows,
)
from edgepack.export.rows import ArrayRows, SourceRows, row_count
from edgepack.export.stored_blocks import AlternateBlocks, AlternateRows

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping

    from edgepack.export.rows import Rows

    Undo = Callable[[Any, Rows], Iterator[tuple[Rows, "Rows | Piece"]]]


@dataclass(frozen=True)
class Undone:
    """What the tensors of a checkpoint were.

    Attributes:
        tensors: checkpoint name → rows.
        incomplete: names of those of which the GGUF has only some rows; the others are zero.
    """

    tensors: Mapping[str, Rows]
    incomplete: frozenset[str]


def undone(expressions: Mapping[str, Rows], values: Mapping[str, Rows]) -> Undone:
    """The tensors from which a family's rules make those of a GGUF.

    Args:
        expressions: GGUF name → how it is made of the checkpoint's tensors, whose shapes are known.
        values: the same names → what it holds, of the same shapes.

    Raises:
        UnsupportedModelError: an expression that has no inverse.
    """
    run = _Run()
    for name, rows in expressions.items():
        run.undo(rows, values[name])
    run.finish()
    return Undone(run.found, frozenset(run.incomplete))


class _Run:
    """Values travel from GGUF tensors to the checkpoint's; a node that several make waits for all its pieces."""

    def __init__(self) -> None:
        self.found: dict[str, Rows] = {}
        self.incomplete: set[str] = set()
        self._waiting: defaultdict[Hashable, list[Piece]] = defaultdict(list)
        self._nodes: dict[Hashable, Rows] = {}

    def undo(self, rows: Rows, value: Rows) -> None:
        if isinstance(rows, SourceRows):
            self.found.setdefault(rows.name, value)
            return
        step = _STEPS.get(type(rows))
        if step is None:
            raise UnsupportedModelError(f"{type(rows).__name__}: what it did to weights cannot be undone")
        for base, part in step(rows, value):
            if isinstance(part, Piece):
                key = _key(base)
                self._nodes[key] = base
                self._waiting[key].append(part)
            else:
                self.undo(base, part)

    def finish(self) -> None:
        while self._waiting:
            key = max(self._waiting, key=lambda each: _depth(self._nodes[each]))
            base, pieces = self._nodes[key], self._waiting.pop(key)
            whole = AssembledRows(base.shape, base.dtype, tuple(pieces))
            if not whole.is_complete:
                self.incomplete |= set(base.origin.names)
            self.undo(base, whole)


def _depth(rows: Rows) -> int:
    """How many expressions lie between a node and the checkpoint."""
    below = getattr(rows, "parts", None) or ([rows.base] if hasattr(rows, "base") else [])
    return 1 + max(map(_depth, below)) if below else 0


def _key(rows: Rows) -> Hashable:
    """The same for expressions that say the same of the same tensors."""
    if isinstance(rows, SourceRows):
        return rows.name
    own = tuple(
        item.tobytes() if isinstance(item, np.ndarray) else item
        for name, item in sorted(vars(rows).items())
        if not name.startswith("_") and name not in ("base", "parts", "stored", "function")
    )
    below = getattr(rows, "parts", None) or [rows.base]  # type: ignore[attr-defined]
    return (type(rows).__name__, own, tuple(map(_key, below)))


def _permuted(rows: PermutedRows, value: Rows) -> Iterator[tuple[Rows, Rows]]:
    yield rows.base, PermutedRows(value, np.argsort(rows.order))


def _picked(rows: PickedRows, value: Rows) -> Iterator[tuple[Rows, Piece]]:
    per = prod(rows.base.shape[1:-1])
    yield rows.base, Piece((rows.order[:, None] * per + np.arange(per)).reshape(-1), value)


def _sliced(rows: SlicedRows, value: Rows) -> Iterator[tuple[Rows, Piece]]:
    per = prod(rows.base.shape[1:-1])
    yield rows.base, Piece(np.arange(rows.start * per, rows.stop * per), value)


def _sliced_experts(rows: SlicedExperts, value: Rows) -> Iterator[tuple[Rows, Piece]]:
    experts, per, _columns = rows.base.shape
    kept = np.arange(experts)[:, None] * per + np.arange(rows.start, rows.stop)
    yield rows.base, Piece(kept.reshape(-1), value)


def _alternate(rows: AlternateRows, value: Rows) -> Iterator[tuple[Rows, Piece]]:
    yield rows.base, Piece(np.arange(rows.first, row_count(rows.base.shape), 2), value)


def _picked_columns(rows: PickedColumns, value: Rows) -> Iterator[tuple[Rows, Piece]]:
    yield rows.base, Piece(np.arange(prod(rows.base.shape[:-1])), value, rows.order)


def _permuted_columns(rows: PermutedColumns, value: Rows) -> Iterator[tuple[Rows, Rows]]:
    yield rows.base, PermutedColumns(value, np.argsort(rows.order))


def _reshaped(rows: ReshapedRows, value: Rows) -> Iterator[tuple[Rows, Rows]]:
    yield rows.base, ReshapedRows(value, rows.base.shape)


def _refolded(rows: RefoldedRows, value: Rows) -> Iterator[tuple[Rows, Rows]]:
    yield rows.base, RefoldedRows(value, rows.base.shape)


def _shifted(rows: ShiftedRows, value: Rows) -> Iterator[tuple[Rows, Rows]]:
    yield rows.base, ShiftedRows(value, -rows.shift)


def _scaled(rows: ScaledRows, value: Rows) -> Iterator[tuple[Rows, Rows]]:
    if not rows.factor:
        raise UnsupportedModelError(f"tensor '{rows.base.origin.names[0]}': was multiplied by 0")
    factor = np.float32(rows.factor)
    yield rows.base, value if factor == 1 else MappedRows(value, lambda matrix: matrix / factor)


def _row_scaled(rows: RowScaledRows, value: Rows) -> Iterator[tuple[Rows, Rows]]:
    if not rows.factors.all():
        raise UnsupportedModelError(f"tensor '{rows.base.origin.names[0]}': rows were multiplied by 0")
    yield rows.base, RowScaledRows(value, np.float32(1) / rows.factors)


def _mapped(rows: MappedRows, value: Rows) -> Iterator[tuple[Rows, Rows]]:
    inverse = INVERSES.get(rows.function)
    if inverse is None:
        raise UnsupportedModelError(f"tensor '{rows.base.origin.names[0]}': what was computed of it has no inverse")
    yield rows.base, MappedRows(value, inverse)


def _padded(rows: PaddedRows, value: Rows) -> Iterator[tuple[Rows, Rows]]:
    yield rows.base, SlicedRows(value, 0, rows.base.shape[0])


def _transposed(rows: TransposedRows, value: Rows) -> Iterator[tuple[Rows, Rows]]:
    yield rows.base, TransposedRows(value)


def _transposed_experts(rows: Any, value: Rows) -> Iterator[tuple[Rows, Rows]]:
    yield rows.base, type(rows)(value)


def _joined(rows: JoinedRows, value: Rows) -> Iterator[tuple[Rows, Rows]]:
    at, vector = 0, len(rows.shape) == 1
    flat = value if vector else ReshapedRows(value, (row_count(rows.shape), rows.shape[-1]))
    for part in rows.parts:
        count = part.shape[0] if vector else prod(part.shape[:-1])
        yield part, ReshapedRows(SlicedRows(flat, at, at + count), part.shape)
        at += count


def _computed(_rows: ArrayRows, _value: Rows) -> Iterator[tuple[Rows, Rows]]:
    yield from ()


_STEPS: Mapping[type, Undo] = {
    AlternateBlocks: _alternate,
    AlternateRows: _alternate,
    ArrayRows: _computed,
    JoinedRows: _joined,
    MappedRows: _mapped,
    PaddedRows: _padded,
    PermutedColumns: _permuted_columns,
    PermutedRows: _permuted,
    PickedColumns: _picked_columns,
    PickedRows: _picked,
    RefoldedRows: _refolded,
    ReshapedRows: _reshaped,
    RowScaledRows: _row_scaled,
    ScaledRows: _scaled,
    ShiftedRows: _shifted,
    SlicedExperts: _sliced_experts,
    SlicedRows: _sliced,
    TransposedRows: _transposed,
    expert_rows.TransposedExperts: _transposed_experts,
    row_functions.TransposedExperts: _transposed_experts,
}
