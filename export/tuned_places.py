"""Which tensors of a GGUF can be tuned against the checkpoint that it was made of, and where their rows lie in it.

The answer of the families' rules (`Rows.origin`), held against the file. What is done with it is `quant.tuning`'s.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import CheckpointError
from edgepack.export.backwards.agreement import alike
from edgepack.export.backwards.opened import RowTensors
from edgepack.export.backwards.undone import undone
from edgepack.export.rows import row_count
from edgepack.gguf import keys
from edgepack.quant.tuning.places import Piece, Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from edgepack.export.mapped import MappedModel
    from edgepack.export.row_origin import RowOrigin
    from edgepack.export.rows import Rows
    from edgepack.model import TensorSource


@dataclass(frozen=True)
class TunedPlaces:
    """Where tensors lie.

    Attributes:
        places: of checkpoint tensors all of whose rows are rows of tunable tensors.
        left: name in the file → why it is not tuned.
        weights: the file's weights under the checkpoint's names.
    """

    places: tuple[Place, ...]
    left: Mapping[str, str]
    weights: TensorSource

    @property
    def tensors(self) -> frozenset[str]:
        """Names in the file that have a place."""
        return frozenset(piece.tensor for place in self.places for piece in place.pieces)


def check_same_model(original: MappedModel, file: MappedModel) -> None:
    """Refuse a file that was not made of this checkpoint, by its names, shapes, settings and vocabulary.

    Raises:
        CheckpointError: it was not; the sentence says what differs.
    """
    for name in original.tensors.keys() ^ file.tensors.keys():
        missing, there = ("file", "model") if name in original.tensors else ("model", "file")
        raise CheckpointError(
            f"{file.label}: not made of {original.label}: the {missing} has no tensor '{name}', the {there} has"
        )
    for name, rows in original.tensors.items():
        if rows.shape != file.tensors[name].shape:
            got, expected = list(file.tensors[name].shape), list(rows.shape)
            raise CheckpointError(
                f"{file.label}: not made of {original.label}: tensor '{name}': expected {expected}, got {got}"
            )
    prefix = f"{original.metadata[keys.ARCHITECTURE].value}."
    for key, value in original.metadata.items():
        if key.startswith(prefix) or key in (keys.ARCHITECTURE, keys.TOKENS):
            found = file.metadata.get(key)
            if found is None or not alike(found.value, value.value):
                raise CheckpointError(f"{file.label}: not made of {original.label}: '{key}' differs")


def tuned_places(original: MappedModel, file: MappedModel, source: TensorSource, wanted: Iterable[str]) -> TunedPlaces:
    """Where the tensors `wanted` of a file lie in a checkpoint.

    Args:
        original: the checkpoint under GGUF names.
        file: of the same tensors (`check_same_model`).
        source: the checkpoint's tensors.
        wanted: names in the file.

    Raises:
        UnsupportedModelError: what was done to a weight cannot be undone.
    """
    left: dict[str, str] = {}
    pieces: defaultdict[str, list[tuple[Piece, RowOrigin]]] = defaultdict(list)
    for name in wanted:
        rows = original.tensors[name]
        origin = rows.origin
        shift = _shift(rows, origin, source) if origin.is_linear and _agrees(origin, rows) else None
        if shift is None:
            left[name] = "its rows are computed of the checkpoint's"
            continue
        for part, parent in enumerate(origin.names):
            mine, at = origin.of_part(part)
            factors = None if origin.factors is None else origin.factors[mine]
            pieces[parent].append((Piece(name, mine, at, row_count(rows.shape), factors, shift), origin))
    places = []
    for parent, found in pieces.items():
        place = _whole(parent, found, source)
        if place is None:
            left |= {piece.tensor: "a part of the matrix that it belongs to is not tuned" for piece, _ in found}
        else:
            places.append(place)
    # A tensor whose rows go to several parents is tuned only where all of these are whole.
    kept = tuple(place for place in places if not any(piece.tensor in left for piece in place.pieces))
    weights = RowTensors(undone(original.tensors, file.tensors).tensors)
    return TunedPlaces(kept, left, weights)


def _agrees(origin: RowOrigin, rows: Rows) -> bool:
    return len(origin) == row_count(rows.shape)


def _whole(parent: str, found: list[tuple[Piece, RowOrigin]], source: TensorSource) -> Place | None:
    """The place of a checkpoint's tensor if its rows are all there, once each, with one order of columns."""
    origins = [origin for _piece, origin in found]
    transposed = parent in origins[0].transposed
    columns = origins[0].columns
    if any(not _same(origin.columns, columns) or (parent in origin.transposed) != transposed for origin in origins):
        return None
    spec = source.specs[parent]
    count = spec.columns if transposed else row_count(spec.shape)
    at = np.sort(np.concatenate([piece.at for piece, _origin in found]))
    if not np.array_equal(at, np.arange(count)):
        return None
    return Place(parent, tuple(piece for piece, _origin in found), transposed, columns)


def _same(first: NDArray[np.intp] | None, second: NDArray[np.intp] | None) -> bool:
    return first is second or (first is not None and second is not None and np.array_equal(first, second))


def _shift(rows: Rows, origin: RowOrigin, source: TensorSource) -> float | None:
    """The constant that weights were raised by, 0 for matrices; None for a vector that is not its source and one."""
    if len(rows.shape) != 1:
        return 0.0
    base = np.empty(len(origin), np.float32)
    for part, parent in enumerate(origin.names):
        mine, at = origin.of_part(part)
        base[mine] = source.read_rows(parent, 0, source.specs[parent].rows).reshape(-1)[at]
    factors = np.float32(1) if origin.factors is None else origin.factors
    raised = rows.read(0, 1).reshape(-1) - base * factors
    shift = float(np.median(raised))
    return shift if np.allclose(raised, shift, atol=1e-5) else None
