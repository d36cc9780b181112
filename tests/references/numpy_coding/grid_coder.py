"""An entropy coder for integers on grids: a table for each scale class (row × column) and, of a trellis, quantiser.

Rows and columns of a matrix differ in spread; one Huffman table over all of them costs 5 to 10 % more. Here every
row and column has a class on a ladder of 2^(1/4), their sum picks a table from a fixed family with one shape a
stream and then learns, so no table is stored. Which streams are matrices of integers is left to `chunks`; numpy only.

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
from references.numpy_coding.grid_tables import (
    CLASSES,
    OFFSET,
    SHAPES,
    TOTAL,
    LearningTables,
    classes_of,
    mean_magnitudes,
    table,
)
from references.numpy_coding.rans import LaneDecoder, encode_lanes
from references.numpy_coding.trellis_symbols import StateTracker, TrellisSymbols, as_indices, integers_of

from edgepack.errors import ArchiveError
from edgepack.trellis import TrellisCode

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HEAD = struct.Struct("<BBBBIHBBI")  # version, zero point, shape, reach, columns, lanes, groups, width, side bytes
_PATHS = struct.Struct("<HH")  # states, rows of a path
_STATIC, _LEARNING = 1, 2  # versions: tables stay as they are, or learn
_NO_TRELLIS = 1  # states
_ASIDE = 128  # added to the class of a row that stands aside
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
        indices: int64 [rows, columns], -reach … reach.
        multiples: int64 [columns].
        paths: of a trellis, what else is known; None without one.
    """

    indices: NDArray[np.int64]
    multiples: NDArray[np.int64]
    paths: TrellisSymbols | None

    @classmethod
    def of(cls, integers: NDArray[np.int64], code: TrellisCode | None) -> _Symbols:
        """From integers [rows, columns] that may follow a code."""
        multiples = np.gcd.reduce(integers, axis=0).clip(1, 255)
        paths = as_indices(integers, multiples, code) if code is not None else None
        if paths is None:
            return cls(integers // multiples, multiples, None)
        return cls(paths.indices, paths.multiples, paths)

    @property
    def reach(self) -> int:
        """The greatest magnitude, at least 1."""
        return max(1, int(np.abs(self.indices).max()))

    @property
    def magnitudes(self) -> NDArray[np.float64]:
        """What classes are about."""
        if self.paths is None:
            return np.abs(self.indices).astype(np.float64)
        return np.abs(integers_of(self.indices, self.paths.quantisers)) / 2

    def picks(self, rows: NDArray[np.int64], columns: NDArray[np.int64], sample: slice) -> NDArray[np.int64]:
        """Number of every symbol's table in some rows: its class, of quantiser 1 `CLASSES` more."""
        classes = classes_of(rows[sample], columns)
        return classes if self.paths is None else classes + CLASSES * self.paths.quantisers[sample].astype(np.int64)

    def side(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> bytes:
        """Row classes, column classes and multiples."""
        marked = rows if self.paths is None else rows + _ASIDE * self.paths.aside
        parts = (marked, columns, self.multiples)
        return zstandard.ZstdCompressor(level=19).compress(b"".join(part.astype(np.uint8).tobytes() for part in parts))


def encode(symbols: NDArray[np.uint8], geometry: Geometry) -> bytes:
    """Code the symbols of whole rows.

    Args:
        symbols: uint8, a multiple of `geometry.columns` of them, in the stream's order.
        geometry: of the matrix; a code that the integers do not follow is not used.
    """
    found = _Symbols.of(_integers(symbols, geometry), geometry.code)
    reach = found.reach
    shape, rows, columns = min(
        (_classes(found, shape, reach) for shape in range(SHAPES)), key=lambda c: _cost(found, reach, *c)
    )
    side, picks = found.side(rows, columns), found.picks(rows, columns, slice(None)).reshape(-1)
    lanes = min(int(np.clip(symbols.size // _SYMBOLS_A_LANE, 4, _MAX_LANES)), geometry.columns)
    tables = LearningTables(picks, shape, reach, learns=True)
    states, words = encode_lanes((found.indices + reach).reshape(-1), picks, tables, lanes)
    sizes = (geometry.columns, lanes, geometry.groups, geometry.width, len(side))
    head = _HEAD.pack(_LEARNING, geometry.zero % 256, shape, reach, *sizes)
    code = geometry.code if found.paths is not None else None
    paths = _PATHS.pack(code.states, code.rows) if code is not None else _PATHS.pack(_NO_TRELLIS, 0)
    return b"".join((head, paths, side, states.astype("<u4").tobytes(), words.astype("<u2").tobytes()))


def _integers(symbols: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.int64]:
    matrix = geometry.as_matrix(symbols)
    return (matrix.view(np.int8) if geometry.zero == 256 else matrix).astype(np.int64) - geometry.zero % 256


def _classes(found: _Symbols, shape: int, reach: int) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """Row and column classes whose sum is the class of a symbol."""
    magnitudes, means = found.magnitudes, mean_magnitudes(shape, reach, 1 if found.paths is None else 2)
    # Sums, not means of ratios: a row of zeros with a few ones would otherwise outweigh all others.
    columns = _clipped(magnitudes.mean(0))
    steps = np.rint(4 * np.log2(columns / columns.min())).astype(np.int64)
    # The class that makes the mean magnitude of a row come out right, given its columns' steps.
    expected = means[classes_of(np.arange(OFFSET + CLASSES), steps)].mean(1)
    bounds = (expected[1:] * expected[:-1]) ** 0.5
    return shape, np.searchsorted(bounds, magnitudes.mean(1)), steps


def _clipped(scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scales within a factor of 16 of their median: a column of zeros must not use up the ladder."""
    median = max(float(np.median(scales)), 1e-3)
    return np.asarray(scales.clip(median / 16, median * 16))


def _cost(found: _Symbols, reach: int, shape: int, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> float:
    """Bits of a sample of rows."""
    sample = slice(None, None, max(1, len(rows) // 64))
    picks = found.picks(rows, columns, sample)
    tables = np.stack([table(pick, shape, reach) for pick in range(int(picks.max()) + 1)])
    return float(-np.log2(tables[picks, found.indices[sample] + reach] / TOTAL).sum())


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
    if not 0 < columns <= count or count % columns or not 0 < lanes <= _MAX_LANES or not 0 < reach <= 128:
        raise ArchiveError(f"{where}: {columns} columns, {lanes} lanes, reach {reach} do not fit {count} symbols")
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
    states = np.frombuffer(stored[head.side_stop : head.words_start], "<u4").astype(np.uint64)
    words = np.frombuffer(stored[head.words_start :], "<u2").astype(np.uint64)
    tracker = None
    if head.code is not None:
        tracker = StateTracker(head.code, rows >= _ASIDE, columns, head.reach)
        rows = rows % _ASIDE
    picks = classes_of(rows.astype(np.int64), column_classes).reshape(-1)
    used = picks if tracker is None else np.concatenate((picks, picks + CLASSES))
    tables = LearningTables(used, head.shape, head.reach, learns=head.learns)
    symbols, quantisers = LaneDecoder(states, words, where).decode(picks, tables, tracker)
    integers = symbols.reshape(-1, columns).astype(np.int64) - head.reach
    if quantisers is not None:
        integers = integers_of(integers, quantisers.reshape(-1, columns))
    geometry = Geometry(columns, head.zero, head.groups, head.width)
    return geometry.as_stream((integers * multiples + head.zero).astype(np.uint8))


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
