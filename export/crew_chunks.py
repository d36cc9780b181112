"""A plan's tensors encoded by a crew: what a piece of work is, and the chunks in file order.

Who the crew is is the caller's; a chunk's bytes are `chunks`'.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from edgepack.export.chunks import CHUNK_WEIGHTS, Chunk, chunks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.crew import Crew
    from edgepack.export.plan import PlannedTensor

# (number of the tensor, first row, last row not included) of each chunk of a piece of work.
Spans = tuple[tuple[int, int, int], ...]
# Weights in a piece: about half a second of encoding, against some milliseconds that sending it takes.
_PIECE_WEIGHTS = 1 << 22
_WORK_FACTOR = 8  # float32 rows of a chunk, and what encoders hold beside them


def spans(tensors: Sequence[PlannedTensor]) -> Iterator[Spans]:
    """Pieces of work in file order, of about four million weights each, across tensors where those are small."""
    piece: list[tuple[int, int, int]] = []
    held = 0
    for number, tensor in enumerate(tensors):
        columns = tensor.info.shape[-1]
        for chunk in chunks(tensor):
            piece.append((number, chunk.start, chunk.stop))
            held += (chunk.stop - chunk.start) * columns
            if held >= _PIECE_WEIGHTS:
                yield tuple(piece)
                piece, held = [], 0
    if piece:
        yield tuple(piece)


def encode_spans(tensors: Sequence[PlannedTensor], piece: Spans) -> list[tuple[str, NDArray[np.uint8]]]:
    """(tensor name, bytes) of each chunk of a piece; what a worker does. Raises as `Chunk.encode`."""
    return [(tensors[number].info.name, Chunk(tensors[number], start, stop).encode()) for number, start, stop in piece]


def halves(piece: Spans) -> list[Spans]:
    """A piece in two, between chunks or within its only one; itself where that is a single row."""
    if len(piece) > 1:
        middle = len(piece) // 2
        return [piece[:middle], piece[middle:]]
    ((number, start, stop),) = piece
    middle = (start + stop) // 2
    return [piece] if middle == start else [((number, start, middle),), ((number, middle, stop),)]


def piece_bytes(tensors: Sequence[PlannedTensor], piece: Spans) -> int:
    """Memory that a piece takes on a worker: its encoded rows twice, and one chunk's weights with what is beside."""
    infos = [(tensors[number].info, stop - start) for number, start, stop in piece]
    encoded = sum(rows * info.type.row_bytes(info.shape[-1]) for info, rows in infos)
    return 2 * encoded + _WORK_FACTOR * min(4 * CHUNK_WEIGHTS, 4 * max(rows * info.shape[-1] for info, rows in infos))


def sample_spans(tensors: Sequence[PlannedTensor]) -> dict[str, Spans]:
    """Type → a piece of the largest tensor that has it, of one chunk: what rates are measured of."""
    largest: dict[str, int] = {}
    for number, tensor in enumerate(tensors):
        name = tensor.info.type.name
        if name not in largest or tensor.info.nbytes > tensors[largest[name]].info.nbytes:
            largest[name] = number
    firsts = ((name, number, next(iter(chunks(tensors[number])))) for name, number in largest.items())
    return {name: ((number, chunk.start, chunk.stop),) for name, number, chunk in firsts}


def crew_chunks(tensors: Sequence[PlannedTensor], crew: Crew) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """As `gguf_file.encoded_chunks`, made by a crew. Every row is encoded by itself, so no cut changes a byte."""
    context = crew.share(tuple(tensors))
    pieces, need = spans(tensors), partial(piece_bytes, tensors)
    for blocks in crew.map(encode_spans, context, pieces, need=need, halves=halves):
        yield from blocks
