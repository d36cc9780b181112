"""Hyper-Compression: two weights as one point of a trajectory that winds through a square.

It is a fixed two-dimensional quantiser: its cost is the index, log2(points · classes) bits for two weights.
Source: arXiv 2409.00592, with a lattice (a closed winding of golden slope) for the trajectory, and a side of the
square fitted to the weights instead of the paper's 0.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from edgepack.errors import CodecError
from edgepack.quant.codecs import bits
from edgepack.quant.codecs.codec import (
    LONGEST_NUMBER,
    NO_STATISTICS,
    Component,
    Decoder,
    Encoded,
    Parameter,
    RowSource,
    Statistics,
    WholeMatrix,
    check_weight,
)
from edgepack.quant.codecs.parameters import integer, number
from edgepack.quant.codecs.pieces import Filled, runs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

MAX_POINTS = 1 << 14
MAX_CLASSES = 8
_GOLDEN = (5**0.5 - 1) / 2
# Sides that are tried, in standard deviations of the pairs around their centre, and the pairs they are tried on.
_SIDES = (3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 7.0, 8.0)
_SAMPLE_PAIRS = 1 << 15
# Cells a side of the grid that finds the nearest point, and candidates in each: every point whose region
# reaches into a cell is among them (points lie about 1/40 apart, a cell is 1/256 wide).
_GRID = 256
_CANDIDATES = 8
_TILE = 1 << 16
_RUN = 16  # weights whose indices end on a byte: eight pairs


@lru_cache(maxsize=4)
def trajectory(points: int) -> NDArray[np.float64]:
    """Points i = 0 … n-1 of the winding: (frac((i + ½)/n), frac((i + ½)·w/n)), float64 [n, 2] in the unit square.

    w is the whole number nearest n·(√5 - 1)/2 that has no divisor in common with n: neighbours on different
    turns then lie as evenly as a lattice can.
    """
    wanted = round(points * _GOLDEN)
    winding = next(w for d in range(points) for w in (wanted - d, wanted + d) if w > 0 and np.gcd(w, points) == 1)
    steps = np.arange(points) + 0.5
    return np.stack([steps / points, steps * winding / points % 1.0], axis=1)


def _pairs(run: NDArray[np.float32]) -> NDArray[np.float64]:
    """Weights [n] two by two, the last filled up with 0: float64 [ceil(n / 2), 2]."""
    pairs = np.zeros((-(-run.size // 2), 2), dtype=np.float64)
    pairs.reshape(-1)[: run.size] = run
    return pairs


@dataclass(frozen=True)
class _Pairs:
    """What the fit must know of all pairs.

    Attributes:
        centre: their mean, [2].
        spread: root of the mean square of their coordinates around it.
        reach: twice the largest distance of a coordinate from it.
        sample: some thousands of them, evenly taken.
    """

    centre: NDArray[np.float64]
    spread: float
    reach: float
    sample: NDArray[np.float64]

    @classmethod
    def of(cls, source: RowSource) -> _Pairs:
        """Read a matrix once."""
        count = -(-source.matrix_shape[0] * source.matrix_shape[1] // 2)
        step, first = max(1, count // _SAMPLE_PAIRS), 0
        total, squares, low, high = np.zeros(2), np.zeros(2), np.full(2, np.inf), np.full(2, -np.inf)
        samples = []
        for run in runs(source, _RUN):
            pairs = _pairs(run)
            total, squares = total + pairs.sum(axis=0), squares + np.square(pairs).sum(axis=0)
            low, high = np.minimum(low, pairs.min(axis=0)), np.maximum(high, pairs.max(axis=0))
            samples.append(pairs[-first % step :: step].copy())  # a view would hold all pairs
            first += len(pairs)
        centre = (total / count).astype(np.float32).astype(np.float64)  # the same however sums were cut
        spread = float(np.float32(np.sqrt(np.maximum(squares / count - centre**2, 0).mean())))
        reach = 2 * float(np.maximum(high - centre, centre - low).max())
        return cls(centre, spread, reach, np.concatenate(samples))


_FITTED = ("centre_x", "centre_y", "side", "ratio")


@dataclass(frozen=True)
class Trajectory:
    """The codec `trajectory`.

    Attributes:
        points: on the trajectory.
        classes: radial scales; class m is ratio^m times as wide, the last one holds the farthest pair.
    """

    points: int = 1365
    classes: int = 3
    name: ClassVar[str] = "trajectory"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        integer({"points": self.points}, "points", 1, MAX_POINTS)
        integer({"classes": self.classes}, "classes", 1, MAX_CLASSES)
        if self.points * self.classes > 1 << bits.MAX_BITS:
            raise CodecError(f"codec 'trajectory': points · classes: expected at most 65536, got {self.points}")

    def encode(self, weight: NDArray[np.float32], statistics: Statistics = NO_STATISTICS) -> Encoded:
        """As `Codec.encode`; statistics are not used."""
        return self.encode_pieces(WholeMatrix(check_weight(weight)), statistics)

    def encode_pieces(self, source: RowSource, statistics: Statistics = NO_STATISTICS) -> Encoded:
        """As `CodesByPieces.encode_pieces`: centre and spread first, then point by point."""
        del statistics
        parameters = self._fit(_Pairs.of(source))
        width = _index_bits(self.points, self.classes)
        shape, known = source.matrix_shape, {**self.draft(source.matrix_shape), **parameters}
        indices = Filled(self.layout(shape, known)["indices"])
        for run in runs(source, _RUN):
            indices.add(bits.pack(_nearest_index(_pairs(run), parameters, self.points, self.classes), width))
        return Encoded(self.name, self.version, shape, known, {"indices": indices.whole()})

    def draft(self, shape: tuple[int, int]) -> dict[str, Parameter]:
        """As `Codec.draft`."""
        del shape
        fitted: dict[str, Parameter] = dict.fromkeys(_FITTED, LONGEST_NUMBER)
        return {"points": self.points, "classes": self.classes, **fitted}

    def _fit(self, pairs: _Pairs) -> dict[str, float]:
        """Centre, side and ratio with the least error on a sample."""
        centre, spread, reach, sample = pairs.centre, pairs.spread, pairs.reach, pairs.sample
        sides = [min(side * spread, reach) for side in _SIDES] if self.classes > 1 else [reach]
        trials = []
        for side in sides:
            ratio = (reach / side) ** (1 / (self.classes - 1)) if self.classes > 1 and side > 0 else 1.0
            fitted = {"centre_x": float(centre[0]), "centre_y": float(centre[1]), "side": side, "ratio": ratio}
            table = _table(fitted, self.points, self.classes)
            index = _nearest_index(sample, fitted, self.points, self.classes)
            trials.append((float(((table[index] - sample) ** 2).sum()), side, fitted))
        return min(trials, key=lambda trial: trial[:2])[2]

    def layout(self, shape: tuple[int, int], parameters: Mapping[str, Parameter]) -> dict[str, Component]:
        """As `Codec.layout`."""
        points, classes = _counts(parameters)
        for key in _FITTED:
            number(parameters, key)
        pairs = -(-shape[0] * shape[1] // 2)
        return {"indices": Component(np.uint8, bits.packed_bytes(pairs, _index_bits(points, classes)))}

    def decoder(self, encoded: Encoded) -> Decoder:
        """As `Codec.decoder`."""
        points, classes = _counts(encoded.parameters)
        fitted = {key: number(encoded.parameters, key) for key in _FITTED}
        return _TrajectoryDecoder(encoded, _table(fitted, points, classes), _index_bits(points, classes))


def _counts(parameters: Mapping[str, Parameter]) -> tuple[int, int]:
    points, classes = integer(parameters, "points", 1, MAX_POINTS), integer(parameters, "classes", 1, MAX_CLASSES)
    if points * classes > 1 << bits.MAX_BITS:
        raise CodecError(f"parameter 'points': expected at most 65536 in all classes, got {points * classes}")
    return points, classes


def _index_bits(points: int, classes: int) -> int:
    return max(1, (points * classes - 1).bit_length())


def _table(fitted: Mapping[str, float], points: int, classes: int) -> NDArray[np.float32]:
    """Both weights of every index i + points·class, float32 [points · classes, 2]."""
    scales = fitted["side"] * np.power(fitted["ratio"], np.arange(classes))
    unit = trajectory(points) - 0.5
    table = scales[:, None, None] * unit + np.array([fitted["centre_x"], fitted["centre_y"]])
    return np.asarray(table.reshape(-1, 2).astype(np.float32))


def _nearest_index(
    pairs: NDArray[np.float64], fitted: Mapping[str, float], points: int, classes: int
) -> NDArray[np.int64]:
    """Index of the nearest point in the narrowest class that holds each pair."""
    offset = pairs - np.array([fitted["centre_x"], fitted["centre_y"]])
    side, ratio = fitted["side"], fitted["ratio"]
    if side <= 0:
        return np.zeros(len(pairs), dtype=np.int64)
    reach = 2 * np.abs(offset).max(axis=1) / side
    scales = np.power(ratio, np.arange(classes))
    chosen = np.minimum(np.searchsorted(scales * (1 + 1e-9), reach), classes - 1)
    unit = np.clip(offset / (side * scales[chosen])[:, None] + 0.5, 0, 1)
    return np.asarray(_nearest_point(unit, points) + points * chosen)


def _nearest_point(unit: NDArray[np.float64], points: int) -> NDArray[np.int64]:
    """The trajectory's point nearest to each place in the unit square."""
    candidates, where = _grid_candidates(points), trajectory(points)
    nearest = np.empty(len(unit), dtype=np.int64)
    for start in range(0, len(unit), _TILE):
        part = unit[start : start + _TILE]
        cell = np.minimum((part * _GRID).astype(np.int64), _GRID - 1)
        near = candidates[cell[:, 0], cell[:, 1]]
        distance = ((where[near] - part[:, None]) ** 2).sum(axis=-1)
        nearest[start : start + _TILE] = near[np.arange(len(part)), distance.argmin(axis=1)]
    return nearest


@lru_cache(maxsize=4)
def _grid_candidates(points: int) -> NDArray[np.int64]:
    """For each cell of a grid the points nearest to its middle, int64 [grid, grid, candidates]."""
    where = trajectory(points)
    count = min(_CANDIDATES, points)
    middles = (np.arange(_GRID) + 0.5) / _GRID
    near = np.empty((_GRID, _GRID, count), dtype=np.int64)
    for row, x in enumerate(middles):
        distance = (where[None, :, 0] - x) ** 2 + (where[None, :, 1] - middles[:, None]) ** 2
        near[row] = np.argpartition(distance, count - 1, axis=1)[:, :count]
    return np.sort(near, axis=-1)


@dataclass(frozen=True)
class _TrajectoryDecoder:
    """Pairs lie row after row, so a row may begin inside a pair."""

    encoded: Encoded
    table: NDArray[np.float32]
    index_bits: int

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        columns = self.encoded.shape[1]
        first, last = start * columns // 2, -(-stop * columns // 2)
        index = bits.unpack(self.encoded.components["indices"], self.index_bits, first, last)
        if index.size and int(index.max()) >= len(self.table):
            raise CodecError(f"codec 'trajectory': index {int(index.max())} is beyond {len(self.table)} points")
        weights = np.take(self.table, index, axis=0).reshape(-1)
        skip = start * columns - 2 * first
        return weights[skip : skip + (stop - start) * columns].reshape(stop - start, columns)
