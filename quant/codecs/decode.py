"""Decodes a whole matrix by chunks of rows on several threads, in bounded memory and in order.

What a chunk becomes (rows of a GGUF, an error sum) is left to the caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from edgepack.ordered_threads import ordered_map
from edgepack.processors import default_threads
from edgepack.quant.codecs.codec import row_chunks
from edgepack.quant.codecs.registry import open_decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from edgepack.quant.codecs.codec import Decoder, Encoded

Result = TypeVar("Result")


def map_rows(
    decoder: Decoder,
    shape: tuple[int, int],
    use: Callable[[int, int, NDArray[np.float32]], Result],
    threads: int,
) -> Iterator[Result]:
    """Results of `use(start, stop, rows)` for every chunk of rows, in order of rows whatever the threads.

    Args:
        decoder: gives the rows.
        shape: (rows, columns) of the matrix.
        use: called on the thread that decoded; float32 rows `start` (included) to `stop` (not included).
        threads: at most threads + 1 chunks are held at a time.
    """
    return ordered_map(
        lambda span: use(*span, decoder.rows(*span)), row_chunks(*shape), threads, ahead=threads
    )  # fmt: skip


def decode(encoded: Encoded, threads: int | None = None) -> NDArray[np.float32]:
    """The whole matrix, float32 of the coded shape; for callers that have the memory.

    Raises:
        CodecError: `encoded` cannot be decoded.
    """
    decoder = open_decoder(encoded)
    matrix = np.empty(encoded.shape, dtype=np.float32)

    def place(start: int, stop: int, rows: NDArray[np.float32]) -> None:
        matrix[start:stop] = rows

    for _ in map_rows(decoder, encoded.shape, place, threads or default_threads()):
        pass
    return matrix
