"""Rows whose bytes in the file are already decided: looked up by the weights that those bytes stand for.

A pass that rounds to a block type's own grid (GPTQ) leaves the exact bytes here, so that export need not quantise
the rows again, and could not choose other scales. Looked up by value, rows may be permuted, split or joined on the
way without any book-keeping.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from edgepack.quant.codecs.ggml.codec import dequantize_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgepack.gguf.types import GGMLType

_KEY_BYTES = 16  # of a row's digest


class CodedRows:
    """A table from rows of float32 weights to their bytes in a type."""

    def __init__(self) -> None:
        self._bytes: dict[tuple[int, bytes], bytes] = {}

    def __len__(self) -> int:
        return len(self._bytes)

    def add(self, kind: GGMLType, rows: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
        """Keep rows of blocks [n, bytes of a row]; returns the weights [n, columns] that they stand for."""
        weights = dequantize_rows(kind, np.ascontiguousarray(rows), len(rows), columns)
        for row, raw in zip(weights, rows, strict=True):
            self._bytes[kind.value, _key(row)] = raw.tobytes()
        return weights

    def find(self, kind: GGMLType, weights: NDArray[np.float32]) -> NDArray[np.uint8] | None:
        """The bytes [n, bytes of a row] of rows [n, columns], or None unless every row is known."""
        found = [self._bytes.get((kind.value, _key(row))) for row in weights]
        if not found or any(raw is None for raw in found):
            return None
        return np.frombuffer(b"".join(raw for raw in found if raw is not None), dtype=np.uint8).reshape(len(found), -1)

    def as_arrays(self) -> dict[str, NDArray[np.uint8]]:
        """The table as arrays that `of_arrays` reads: `coded.TYPE.BYTES` → uint8 [n, 16 + BYTES], digest and bytes."""
        rows: dict[str, list[bytes]] = {}
        for (kind, key), raw in self._bytes.items():
            rows.setdefault(f"coded.{kind}.{len(raw)}", []).append(key + raw)
        return {name: np.frombuffer(b"".join(found), np.uint8).reshape(len(found), -1) for name, found in rows.items()}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[np.uint8]]) -> CodedRows:
        """The table that `as_arrays` gave."""
        table = cls()
        for name, rows in arrays.items():
            kind = int(name.split(".")[1])
            for row in rows:
                raw = row.tobytes()
                table._bytes[kind, raw[:_KEY_BYTES]] = raw[_KEY_BYTES:]
        return table

    def update(self, other: CodedRows) -> None:
        """Add all rows of `other`."""
        self._bytes.update(other._bytes)


def _key(row: NDArray[np.float32]) -> bytes:
    """A digest of a row; -0.0 and 0.0 are one weight."""
    return blake2b((row + np.float32(0)).tobytes(), digest_size=_KEY_BYTES).digest()
