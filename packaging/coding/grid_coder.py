"""An entropy coder for integers on grids: a table for each scale class (row × column) and, of a trellis, quantiser.

Rows and columns of a matrix differ in spread; one Huffman table over all of them costs 5 to 10 % more. Here every
row and column has a class on a ladder of 2^(1/4), their sum picks a table from a fixed family with one shape a
stream and then learns, so no table is stored. Which streams are matrices of integers is left to `chunks`.

    u8 version · u8 zero point · u8 shape · u8 reach · u32 columns · u16 lanes · u8 groups · u8 width · u32 side bytes
    | version 2: u16 trellis states, 1 for none · u16 rows of a path | side | states | words

Side is a zstd frame of row classes, column classes and column multiples, a byte each; states are u32, words u16.
Tables of version 2 learn from what they coded. Where it has a trellis, `trellis_symbols` says what is coded; a row
class of 128 and more then is that of a row that stands aside.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import zstandard

from edgepack.errors import ArchiveError
from edgepack.kernels.native import library, pointer
from edgepack.packaging.coding.grid_tables import (
    CLASSES,
    OFFSET,
    SHAPES,
    TOTAL,
    classes_of,
    first_tables,
    mean_magnitudes,
)
from edgepack.packaging.coding.rans import ASIDE, LEAST_LANES, MOST_LANES, MOST_REACH, LaneCoder
from edgepack.packaging.coding.trellis_symbols import as_indices
from edgepack.trellis import TrellisCode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.packaging.coding.trellis_symbols import TrellisSymbols

_HEAD = struct.Struct("<BBBBIHBBI")  # version, zero point, shape, reach, columns, lanes, groups, width, side bytes
_PATHS = struct.Struct("<HH")  # states, rows of a path
_STATIC, _LEARNING = 1, 2  # versions: tables stay as they are, or learn
_NO_TRELLIS = 1  # states
_SYMBOLS_A_LANE = 4096
LEAST_COLUMNS = LEAST_LANES  # a lane a column at least: fewer would be one long chain of dependent steps
_MOST_CLASSES = 1 << 22  # of rows and columns together; a chunk of whole rows of blocks has far fewer


@dataclass(frozen=True)
class Geometry:
    """How a stream of symbols is a matrix.

    Attributes:
        columns: symbols in a row.
        zero: the symbol that stands for the integer 0; 256 counts as 0 in two's complement.
        groups: parts of the stream, one behind the other.
        width: symbols of each block in each part; block by block the parts are the matrix, row-major.
        code: the trellis that the integers may follow from the first row on; None for none.
    """

    columns: int
    zero: int
    groups: int = 1
    width: int = 1
    code: TrellisCode | None = None

    def as_matrix(self, symbols: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The stream in row-major order."""
        return np.asarray(symbols.reshape(self.groups, -1, self.width).swapaxes(0, 1).reshape(-1, self.columns))

    def as_stream(self, matrix: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The inverse of `as_matrix`."""
        return np.asarray(matrix.reshape(-1, self.groups, self.width).swapaxes(0, 1).reshape(-1))


@dataclass(frozen=True)
class _Symbols:
    """What is coded of a matrix.

    Attributes:
        indices: int16 [rows, columns], -reach … reach.
        multiples: int16 [columns].
        paths: of a trellis, what else is known; None without one.
        reach: the greatest magnitude of an index, at least 1.
        row_means, column_means: float64 [rows] and [columns], mean magnitudes: what classes are about.
    """

    indices: NDArray[np.int16]
    multiples: NDArray[np.int16]
    paths: TrellisSymbols | None
    reach: int
    row_means: NDArray[np.float64]
    column_means: NDArray[np.float64]

    @classmethod
    def of(cls, integers: NDArray[np.int16], code: TrellisCode | None) -> _Symbols:
        """From integers [rows, columns] that may follow a code."""
        multiples = np.empty(integers.shape[1], np.int16)
        library().edgepack_grid_divisors(
            pointer(integers, "const int16_t *"), *integers.shape, pointer(multiples, "int16_t *")
        )
        multiples = multiples.clip(1, 255)
        paths = as_indices(integers, multiples, code) if code is not None else None
        if paths is not None:
            indices, multiples = paths.indices, paths.multiples
        else:
            indices = integers if (multiples == 1).all() else integers // multiples
        reach, rows, columns = _sums(indices, paths)
        half = 1 if paths is None else 2  # magnitudes of paths are those of half their integers
        return cls(indices, multiples, paths, max(1, reach), rows / half / len(columns), columns / half / len(rows))

    @property
    def quantisers(self) -> NDArray[np.uint8] | None:
        """Of a trellis, uint8 [rows, columns]."""
        return None if self.paths is None else self.paths.quantisers

    def side(self, rows: NDArray[np.uint8], columns: NDArray[np.uint8]) -> bytes:
        """Row classes, column classes and multiples."""
        parts = (self.marked(rows), columns, self.multiples.astype(np.uint8))
        return zstandard.ZstdCompressor(level=19).compress(b"".join(part.tobytes() for part in parts))

    def marked(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Row classes with the mark of those that stand aside."""
        return rows if self.paths is None else rows + np.uint8(ASIDE) * self.paths.aside.astype(np.uint8)


def _sums(indices: NDArray[np.int16], paths: TrellisSymbols | None) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """Greatest index, and sums of magnitudes by row and by column."""
    rows, columns = (np.empty(size, np.int64) for size in indices.shape)
    reach = library().edgepack_grid_magnitudes(
        pointer(indices, "const int16_t *"),
        pointer(None if paths is None else paths.quantisers, "const uint8_t *"),
        *indices.shape, 1 if paths is None else 2, pointer(rows, "int64_t *"), pointer(columns, "int64_t *"),
    )  # fmt: skip
    return int(reach), rows, columns


def encode(symbols: NDArray[np.uint8], geometry: Geometry) -> bytes:
    """Code the symbols of whole rows.

    Args:
        symbols: uint8, a multiple of `geometry.columns` of them, in the stream's order.
        geometry: of the matrix; a code that the integers do not follow is not used.
    """
    found = _Symbols.of(_integers(symbols, geometry), geometry.code)
    shape, rows, columns = min((_classes(found, shape) for shape in range(SHAPES)), key=lambda c: _cost(found, *c))
    side = found.side(rows, columns)
    lanes = min(int(np.clip(symbols.size // _SYMBOLS_A_LANE, LEAST_LANES, MOST_LANES)), geometry.columns)
    code = geometry.code if found.paths is not None else None
    coder = LaneCoder(found.marked(rows), columns, lanes, shape, found.reach, True, code)
    states, words = coder.encode(found.indices, found.quantisers)
    sizes = (geometry.columns, lanes, geometry.groups, geometry.width, len(side))
    head = _HEAD.pack(_LEARNING, geometry.zero % 256, shape, found.reach, *sizes)
    paths = _PATHS.pack(code.states, code.rows) if code is not None else _PATHS.pack(_NO_TRELLIS, 0)
    return b"".join((head, paths, side, states.astype("<u4").tobytes(), words.astype("<u2").tobytes()))


def _integers(symbols: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.int16]:
    matrix = geometry.as_matrix(symbols)
    integers: NDArray[np.int16] = (matrix.view(np.int8) if geometry.zero == 256 else matrix).astype(np.int16)
    integers -= np.int16(geometry.zero % 256)
    return integers


def _classes(found: _Symbols, shape: int) -> tuple[int, NDArray[np.uint8], NDArray[np.uint8]]:
    """Row and column classes whose sum is the class of a symbol."""
    means = mean_magnitudes(shape, found.reach, 1 if found.paths is None else 2)
    # Sums, not means of ratios: a row of zeros with a few ones would otherwise outweigh all others.
    columns = _clipped(found.column_means)
    steps = np.rint(4 * np.log2(columns / columns.min())).astype(np.int64)
    # The class that makes the mean magnitude of a row come out right, given its columns' steps.
    shares = np.bincount(steps) / len(steps)
    expected = means[classes_of(np.arange(OFFSET + CLASSES), np.arange(len(shares)))] @ shares
    bounds = (expected[1:] * expected[:-1]) ** 0.5
    return shape, np.searchsorted(bounds, found.row_means).astype(np.uint8), steps.astype(np.uint8)


def _clipped(scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scales within a factor of 16 of their median: a column of zeros must not use up the ladder."""
    median = max(float(np.median(scales)), 1e-3)
    return np.asarray(scales.clip(median / 16, median * 16))


def _cost(found: _Symbols, shape: int, rows: NDArray[np.uint8], columns: NDArray[np.uint8]) -> float:
    """Bits of a sample of rows."""
    counts = np.zeros((2, CLASSES, 2 * found.reach + 1), np.int64)
    chosen = found.quantisers
    library().edgepack_grid_count(
        pointer(found.indices, "const int16_t *"), pointer(chosen, "const uint8_t *"), *found.indices.shape,
        max(1, len(rows) // 64), pointer(rows, "const uint8_t *"), pointer(columns, "const uint8_t *"), found.reach,
        pointer(counts, "int64_t *"),
    )  # fmt: skip
    tables = first_tables(shape, found.reach, 1 if chosen is None else 2)
    return float((counts[: len(tables)] * -np.log2(tables / TOTAL)).sum())


@dataclass(frozen=True)
class _Head:
    """The fields before the side, checked against the number of symbols."""

    zero: int
    shape: int
    reach: int
    columns: int
    lanes: int
    groups: int
    width: int
    side_start: int
    side_stop: int
    learns: bool
    code: TrellisCode | None

    @property
    def words_start(self) -> int:
        """Where the words begin; the lanes' states end."""
        return self.side_stop + 4 * self.lanes


def _head(stored: memoryview, count: int, where: str) -> _Head:
    if len(stored) < _HEAD.size + _PATHS.size:
        raise ArchiveError(f"{where}: expected a head of {_HEAD.size + _PATHS.size} bytes, got {len(stored)}")
    version, zero, shape, reach, columns, lanes, groups, width, side_bytes = _HEAD.unpack_from(stored)
    if version not in (_STATIC, _LEARNING) or shape >= SHAPES:
        raise ArchiveError(f"{where}: unknown grid version {version}, shape {shape}: update edgepack")
    if not LEAST_COLUMNS <= columns <= count or count % columns or count // columns + columns > _MOST_CLASSES:
        raise ArchiveError(f"{where}: {columns} columns do not fit {count} symbols")
    if not LEAST_LANES <= lanes <= MOST_LANES or not 0 < reach <= MOST_REACH:
        expected = f"{LEAST_LANES} to {MOST_LANES} lanes, reach up to {MOST_REACH}"
        raise ArchiveError(f"{where}: expected {expected}, got {lanes}, {reach}")
    if not groups * width or count % (groups * width):
        raise ArchiveError(f"{where}: {groups} groups of {width} do not fit {count} symbols")
    code = _code(stored, where) if version == _LEARNING else None
    if code is not None and lanes > columns:
        raise ArchiveError(f"{where}: expected at most {columns} lanes, one a column, got {lanes}")
    start = _HEAD.size + (_PATHS.size if version == _LEARNING else 0)
    learns = version == _LEARNING
    head = _Head(zero, shape, reach, columns, lanes, groups, width, start, start + side_bytes, learns, code)
    if head.words_start > len(stored) or (len(stored) - head.words_start) % 2:
        raise ArchiveError(f"{where}: side of {side_bytes} bytes and {lanes} states do not fit {len(stored)} bytes")
    return head


def _code(stored: memoryview, where: str) -> TrellisCode | None:
    states, rows = _PATHS.unpack_from(stored, _HEAD.size)
    if states == _NO_TRELLIS:
        return None
    try:
        return TrellisCode(states, rows)
    except ValueError as error:
        raise ArchiveError(f"{where}: unknown trellis: {error}") from None


def decode(stored: memoryview, count: int, where: str) -> NDArray[np.uint8]:
    """The inverse of `encode`; trusts nothing in `stored`.

    Args:
        stored: what `encode` gave.
        count: symbols that it must hold.
        where: begins the text of errors.

    Raises:
        ArchiveError: anything that `encode` would not have written.
    """
    head = _head(stored, count, where)
    columns, height = head.columns, count // head.columns
    rows, column_classes, multiples = _side(stored[head.side_start : head.side_stop], height, columns, where)
    states = np.frombuffer(stored[head.side_stop : head.words_start], "<u4").astype(np.uint32)
    words = np.frombuffer(stored[head.words_start :], "<u2").astype(np.uint16)
    coder = LaneCoder(rows, column_classes, head.lanes, head.shape, head.reach, head.learns, head.code)
    matrix = coder.decode(multiples, head.zero, states, words, where)
    return Geometry(columns, head.zero, head.groups, head.width).as_stream(matrix)


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
