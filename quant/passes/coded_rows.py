"""Rows whose bytes in the file are already decided: looked up by the weights that those bytes stand for.

A pass that rounds to a block type's own grid (GPTQ) leaves the exact bytes here, so that export need not quantise
the rows again, and could not choose other scales. Looked up by value, rows may be permuted, split or joined on the
way without any book-keeping. In a folder they take no memory, and another process that is handed the table reads them
there.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.quant.codecs.ggml.codec import dequantize_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgepack.gguf.types import GGMLType

_KEY_BYTES = 16  # of a row's digest
_MISSING = -1


@dataclass(frozen=True)
class _Segment:
    """Rows that were added together; what they are looked up by is in memory, 16 bytes a row.

    Attributes:
        kind: number of their type.
        keys: uint64 [n, 2], their digests in order.
        rows: uint8 [n, bytes of a row], in the same order; or the file of them.
        of_keys: the file of `keys`; None where they are kept in none.
    """

    kind: int
    keys: NDArray[np.uint64]
    rows: NDArray[np.uint8] | Path
    of_keys: Path | None = None

    @property
    def blocks(self) -> NDArray[np.uint8]:
        """`rows`; of a file, a map of it."""
        return np.load(self.rows, mmap_mode="r") if isinstance(self.rows, Path) else self.rows


class CodedRows:
    """A table from rows of float32 weights to their bytes in a type; of rows that were added twice the last counts.

    Args:
        folder: where they lie, made when needed; None for memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._segments: list[_Segment] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, kind: GGMLType, rows: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
        """Keep rows of blocks [n, bytes of a row]; returns the weights [n, columns] that they stand for."""
        weights = dequantize_rows(kind, np.ascontiguousarray(rows), len(rows), columns)
        self._keep(kind.value, _keys(weights), rows)
        return weights

    def find(self, kind: GGMLType, weights: NDArray[np.float32]) -> NDArray[np.uint8] | None:
        """The bytes [n, bytes of a row] of rows [n, columns], or None unless every row is known."""
        keys, found = _keys(weights), None
        left = np.arange(len(keys))
        for segment in reversed(self._segments):
            if not len(left):
                break
            if segment.kind != kind.value:
                continue
            places = _places(segment.keys, keys[left])
            hits = places != _MISSING
            if not hits.any():
                continue
            rows = segment.blocks
            if found is None:
                found = np.empty((len(keys), rows.shape[1]), np.uint8)
            found[left[hits]] = rows[places[hits]]
            left = left[~hits]
        return None if len(left) else found

    def copy_to(self, folder: Path) -> CodedRows:
        """The same table in files of `folder`, which is made where needed; a segment at a time is in memory."""
        copied = CodedRows(folder)
        for segment in self._segments:
            copied._segments.append(copied._stored(segment.kind, segment.keys, segment.blocks))
        copied._count = self._count
        return copied

    def index(self) -> dict[str, Any]:
        """What `reopen` needs to find the files of a folder again, as JSON has it."""
        return {"rows": self._count, "kinds": [segment.kind for segment in self._segments]}

    @property
    def files(self) -> list[Path]:
        """Of all segments."""
        every = (path for segment in self._segments for path in (segment.of_keys, segment.rows))
        return [path for path in every if isinstance(path, Path)]

    @classmethod
    def reopen(cls, folder: Path, index: Mapping[str, Any]) -> CodedRows:
        """The table that lies in the files of a folder.

        Args:
            folder: that the table was made or copied with.
            index: as `index` gave it.
        """
        table = cls(folder)
        table._count = int(index["rows"])
        table._segments = [_reopened(kind, *_paths(folder, number)) for number, kind in enumerate(index["kinds"])]
        return table

    def _keep(self, kind: int, keys: NDArray[np.uint64], rows: NDArray[np.uint8]) -> None:
        """Add a segment of rows [n, bytes] with their digests [n, 2]."""
        if not len(keys):
            return
        order = np.lexsort((np.arange(len(keys)), keys[:, 1], keys[:, 0]))
        is_last = np.append((keys[order[1:]] != keys[order[:-1]]).any(axis=1), True)
        chosen = order[is_last]
        kept = np.ascontiguousarray(keys[chosen])
        new = np.ones(len(kept), bool)
        for segment in self._segments:
            if segment.kind == kind:
                new &= _places(segment.keys, kept) == _MISSING
        self._count += int(new.sum())
        self._segments.append(self._stored(kind, kept, np.ascontiguousarray(rows[chosen])))

    def _stored(self, kind: int, keys: NDArray[np.uint64], rows: NDArray[np.uint8]) -> _Segment:
        if self._folder is None:
            return _Segment(kind, keys, rows)
        self._folder.mkdir(parents=True, exist_ok=True)
        of_keys, of_rows = _paths(self._folder, len(self._segments))
        np.save(of_keys, keys)
        np.save(of_rows, rows)
        return _Segment(kind, keys, of_rows, of_keys)


def _reopened(kind: int, of_keys: Path, of_rows: Path) -> _Segment:
    return _Segment(kind, np.load(of_keys), of_rows, of_keys)


def _paths(folder: Path, number: int) -> tuple[Path, Path]:
    """Where a segment's digests and rows lie."""
    return folder / f"coded-{number}-keys.npy", folder / f"coded-{number}-rows.npy"


def _keys(rows: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Digests [n, 2] of rows; -0.0 and 0.0 are one weight."""
    raw = b"".join(blake2b((row + np.float32(0)).tobytes(), digest_size=_KEY_BYTES).digest() for row in rows)
    return np.frombuffer(raw, ">u8").astype(np.uint64).reshape(len(rows), 2)


def _places(known: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Where keys [m, 2] stand among the sorted `known` [n, 2]; -1 where they do not."""
    firsts = known[:, 0]
    places = np.searchsorted(firsts, keys[:, 0])
    while True:  # past those with the same first half and another second one, of which there are hardly any
        inside = np.minimum(places, len(known) - 1)
        same = (places < len(known)) & (firsts[inside] == keys[:, 0])
        equal = same & (known[inside, 1] == keys[:, 1])
        if not (same & ~equal).any():
            return np.where(equal, places, _MISSING)
        places = places + (same & ~equal)
