"""An entropy coder for integers on grids: a table for each scale class (row × column), interleaved rANS in numpy.

Rows and columns of a matrix differ in spread; one Huffman table over all of them costs 5 to 10 % more. Here every
row and column has a class on a ladder of 2^(1/4), their sum picks a table from a fixed family with one shape a
stream, so no table is stored. Sources: Duda, arXiv 1311.2540 (rANS); Giesen, arXiv 1402.3392 (interleaving).

Tables are made with IEEE additions, multiplications and exactly rounded sums only: the same bits on every machine.
Which streams are matrices of integers is left to `chunks`; numpy only.

    u8 version · u8 zero point · u8 shape · u8 reach · u32 columns · u16 lanes · u8 groups · u8 width · u32 side bytes
    | side | states | words

Side is a zstd frame of row classes, column classes and column multiples, a byte each; states are u32, words u16.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import zstandard

from edgepack.errors import ArchiveError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HEAD = struct.Struct("<BBBBIHBBI")  # version, zero point, shape, reach, columns, lanes, groups, width, side bytes
_VERSION = 1
_TOTAL = 1 << 16  # a table's frequencies add up to this
_LOW = 1 << 16  # states lie in [_LOW, 2^32)
_CLASSES = 48  # scales 2^((class - 12) / 4): 1/8 to 430
_OFFSET = 40  # class of a symbol = row class + column class - _OFFSET, held to 0 … _CLASSES - 1
_SHAPES = 8  # 0: Gaussian … 7: Laplace
_SYMBOLS_A_LANE = 4096
_MAX_LANES = 256


@dataclass(frozen=True)
class Geometry:
    """How a stream of symbols is a matrix.

    Attributes:
        columns: symbols in a row.
        zero: the symbol that stands for the integer 0; 256 counts as 0 in two's complement.
        groups: parts of the stream, one behind the other.
        width: symbols of each block in each part; block by block the parts are the matrix, row-major.
    """

    columns: int
    zero: int
    groups: int = 1
    width: int = 1

    def as_matrix(self, symbols: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The stream in row-major order."""
        return np.asarray(symbols.reshape(self.groups, -1, self.width).swapaxes(0, 1).reshape(-1, self.columns))

    def as_stream(self, matrix: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The inverse of `as_matrix`."""
        return np.asarray(matrix.reshape(-1, self.groups, self.width).swapaxes(0, 1).reshape(-1))


def _exp_of_minus(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(-x) for x ≥ 0 by halving and Taylor's series: only IEEE additions, products and powers of two."""
    halvings = 10
    x = np.minimum(values, 600.0) / -(2.0**halvings)
    total, term = np.ones_like(x), np.ones_like(x)
    for n in range(1, 14):
        term = term * x / n
        total = total + term
    for _ in range(halvings):
        total = total * total
    return total


@cache
def frequencies(scale_class: int, shape: int, reach: int) -> NDArray[np.uint32]:
    """Frequencies of -reach … reach for a class and shape; each at least 1, together `_TOTAL`."""
    ladder = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)[scale_class % 4]
    scale = math.ldexp(ladder, scale_class // 4 - 3)
    x = np.abs(np.arange(-reach, reach + 1)) / scale
    weight = shape / (_SHAPES - 1)
    density = _exp_of_minus((1.0 - weight) * (x * x) * 0.5 + weight * 1.4142135623730951 * x)
    free = _TOTAL - (2 * reach + 1)
    counts = (density / math.fsum(density.tolist()) * free).astype(np.uint32) + np.uint32(1)
    counts[reach] += np.uint32(_TOTAL - int(counts.sum()))
    counts.setflags(write=False)
    return np.asarray(counts)


@cache
def _mean_magnitudes(shape: int, reach: int) -> NDArray[np.float64]:
    """Mean |n| of every class, increasing."""
    magnitudes = np.abs(np.arange(-reach, reach + 1))
    return np.array([(frequencies(c, shape, reach) * magnitudes).sum() / _TOTAL for c in range(_CLASSES)])


def encode(symbols: NDArray[np.uint8], geometry: Geometry) -> bytes:
    """Code the symbols of whole rows.

    Args:
        symbols: uint8, a multiple of `geometry.columns` of them, in the stream's order.
        geometry: of the matrix.
    """
    integers = _integers(symbols, geometry)
    multiples = np.gcd.reduce(integers, axis=0).clip(1, 255)
    integers = integers // multiples
    reach = max(1, int(np.abs(integers).max()))
    shape, rows, columns = min(
        (_classes(integers, shape, reach) for shape in range(_SHAPES)), key=lambda c: _cost(integers, reach, *c)
    )
    side = zstandard.ZstdCompressor(level=19).compress(
        b"".join(part.astype(np.uint8).tobytes() for part in (rows, columns, multiples))
    )
    picks = _picks(rows, columns).reshape(-1)
    lanes = int(np.clip(integers.size // _SYMBOLS_A_LANE, 4, _MAX_LANES))
    states, words = _encode_lanes((integers + reach).reshape(-1), picks, shape, reach, lanes)
    sizes = (geometry.columns, lanes, geometry.groups, geometry.width, len(side))
    head = _HEAD.pack(_VERSION, geometry.zero % 256, shape, reach, *sizes)
    return b"".join((head, side, states.astype("<u4").tobytes(), words.astype("<u2").tobytes()))


def _integers(symbols: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.int64]:
    matrix = geometry.as_matrix(symbols)
    return (matrix.view(np.int8) if geometry.zero == 256 else matrix).astype(np.int64) - geometry.zero % 256


def _classes(integers: NDArray[np.int64], shape: int, reach: int) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """Row and column classes whose sum is the class of a symbol."""
    magnitudes = np.abs(integers).astype(np.float64)
    means = _mean_magnitudes(shape, reach)
    # Sums, not means of ratios: a row of zeros with a few ones would otherwise outweigh all others.
    columns = _clipped(magnitudes.mean(0))
    steps = np.rint(4 * np.log2(columns / columns.min())).astype(np.int64)
    # The class that makes the mean magnitude of a row come out right, given its columns' steps.
    expected = means[_picks(np.arange(_OFFSET + _CLASSES), steps)].mean(1)
    bounds = (expected[1:] * expected[:-1]) ** 0.5
    return shape, np.searchsorted(bounds, magnitudes.mean(1)), steps


def _picks(rows: NDArray[np.int64], columns: NDArray[Any]) -> NDArray[np.int64]:
    """The class of every symbol [rows, columns]."""
    return np.asarray((rows[:, None] + columns - _OFFSET).clip(0, _CLASSES - 1))


def _clipped(scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scales within a factor of 16 of their median: a column of zeros must not use up the ladder."""
    median = max(float(np.median(scales)), 1e-3)
    return np.asarray(scales.clip(median / 16, median * 16))


def _cost(
    integers: NDArray[np.int64], reach: int, shape: int, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> float:
    """Bits of a sample of rows."""
    sample = slice(None, None, max(1, len(integers) // 64))
    picks = _picks(rows[sample], columns)
    table = np.stack([frequencies(c, shape, reach) for c in range(_CLASSES)])
    return float(-np.log2(table[picks, integers[sample] + reach] / _TOTAL).sum())


def _tables(picks: NDArray[np.int64], shape: int, reach: int) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]:
    """Dense numbers of the classes in use for every symbol, their frequencies and cumulated frequencies."""
    used = np.flatnonzero(np.bincount(picks, minlength=_CLASSES))
    number = np.zeros(_CLASSES, np.int64)
    number[used] = np.arange(len(used))
    counts = np.stack([frequencies(int(c), shape, reach) for c in used]).astype(np.uint64)
    starts = np.cumsum(counts, axis=1) - counts
    return number[picks], counts, starts


def _encode_lanes(
    symbols: NDArray[np.int64], picks: NDArray[np.int64], shape: int, reach: int, lanes: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Symbol i is in lane i mod lanes; lanes are coded from their last symbol to their first."""
    picks, counts, starts = _tables(picks, shape, reach)
    frequency, start = counts[picks, symbols], starts[picks, symbols]
    states = np.full(lanes, _LOW, np.uint64)
    parts = []
    for first in reversed(range(0, len(symbols), lanes)):
        f, s = frequency[first : first + lanes], start[first : first + lanes]
        x = states[: len(f)]
        full = x >= f << np.uint64(16)
        parts.append(x[full] & np.uint64(0xFFFF))
        x = np.where(full, x >> np.uint64(16), x)
        quotient, rest = np.divmod(x, f)
        states[: len(f)] = (quotient << np.uint64(16)) + rest + s
    return states, np.concatenate(parts[::-1])


def decode(stored: memoryview, count: int, where: str) -> NDArray[np.uint8]:
    """The inverse of `encode`; trusts nothing in `stored`.

    Args:
        stored: what `encode` gave.
        count: symbols that it must hold.
        where: begins the text of errors.

    Raises:
        ArchiveError: anything that `encode` would not have written.
    """
    if len(stored) < _HEAD.size:
        raise ArchiveError(f"{where}: expected a head of {_HEAD.size} bytes, got {len(stored)}")
    version, zero, shape, reach, columns, lanes, groups, width, side_bytes = _HEAD.unpack_from(stored)
    if version != _VERSION or shape >= _SHAPES:
        raise ArchiveError(f"{where}: unknown grid version {version}, shape {shape}: update edgepack")
    if not 0 < columns <= count or count % columns or not 0 < lanes <= _MAX_LANES or not 0 < reach <= 128:
        raise ArchiveError(f"{where}: {columns} columns, {lanes} lanes, reach {reach} do not fit {count} symbols")
    if not groups * width or count % (groups * width):
        raise ArchiveError(f"{where}: {groups} groups of {width} do not fit {count} symbols")
    start = _HEAD.size + side_bytes
    words_start = start + 4 * lanes
    if words_start > len(stored) or (len(stored) - words_start) % 2:
        raise ArchiveError(f"{where}: side of {side_bytes} bytes and {lanes} states do not fit {len(stored)} bytes")
    rows, column_classes, multiples = _side(stored[_HEAD.size : start], count // columns, columns, where)
    states = np.frombuffer(stored[start:words_start], "<u4").astype(np.uint64)
    words = np.frombuffer(stored[words_start:], "<u2").astype(np.uint64)
    picks = _picks(rows.astype(np.int64), column_classes).reshape(-1)
    symbols = _decode_lanes(states, words, picks, shape, reach, where)
    integers = (symbols.reshape(-1, columns).astype(np.int64) - reach) * multiples + zero
    return Geometry(columns, zero, groups, width).as_stream(integers.astype(np.uint8))


def _side(
    frame: memoryview, rows: int, columns: int, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    expected = rows + 2 * columns
    try:
        if zstandard.get_frame_parameters(frame).content_size != expected:
            raise ArchiveError(f"{where}: expected {expected} classes and multiples")
        plain = np.frombuffer(zstandard.ZstdDecompressor().decompress(frame, max_output_size=expected), np.uint8)
    except zstandard.ZstdError as error:
        raise ArchiveError(f"{where}: classes are not a zstd frame: {error}") from None
    if len(plain) != expected:
        raise ArchiveError(f"{where}: expected {expected} classes and multiples, got {len(plain)}")
    return plain[:rows], plain[rows : rows + columns], plain[rows + columns :]


def _decode_lanes(
    states: NDArray[np.uint64],
    words: NDArray[np.uint64],
    picks: NDArray[np.int64],
    shape: int,
    reach: int,
    where: str,
) -> NDArray[np.uint8]:
    picks, counts, starts = _tables(picks, shape, reach)
    of_slot = np.stack([np.repeat(np.arange(2 * reach + 1, dtype=np.uint8), row.astype(np.int64)) for row in counts])
    symbols, position, lanes = np.empty(len(picks), np.uint8), 0, len(states)
    for first in range(0, len(picks), lanes):
        pick = picks[first : first + lanes]
        x = states[: len(pick)]
        slot = x & np.uint64(0xFFFF)
        symbol = of_slot[pick, slot]
        symbols[first : first + lanes] = symbol
        x = counts[pick, symbol] * (x >> np.uint64(16)) + slot - starts[pick, symbol]
        needy = np.flatnonzero(x < _LOW)
        if position + len(needy) > len(words):
            raise ArchiveError(f"{where}: its {len(words)} words end too early")
        x[needy] = (x[needy] << np.uint64(16)) | words[position : position + len(needy)]
        position += len(needy)
        states[: len(pick)] = x
    if position != len(words) or (states != _LOW).any():
        raise ArchiveError(f"{where}: does not end where it began: damaged or hostile")
    return symbols
