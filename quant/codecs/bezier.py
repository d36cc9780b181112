"""Sorted weights as a Bézier curve, with each weight's place on the curve stored.

The other reading of "parametric trajectory". Its cost is the order: a place takes log2(places) bits a weight, and
storing the full order of 256 weights takes eight. With fewer places it is a scalar quantiser whose levels lie on
a curve. Fitting alternates nearest places and least-squares control points, as Lloyd's method does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import TYPE_CHECKING, ClassVar

import numpy as np

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
from edgepack.quant.codecs.pieces import Filled, row_pieces, runs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

MAX_SEGMENT = 1 << 16
MAX_DEGREE = 7
_FITTING_STEPS = 6
# Segments that are fitted together: their [segments, places] levels and [segments, 256, degree + 1] rows stay small.
_TILE = 512
# Weights decoded together: levels, indices and weights of 2^15 stay in a second-level cache.
_DECODED_TOGETHER = 1 << 15


@lru_cache(maxsize=8)
def bernstein(places: int, degree: int) -> NDArray[np.float64]:
    """The curve's weights of its control points at t = i / (places - 1), float64 [places, degree + 1]."""
    t = np.linspace(0, 1, places)[:, None]
    k = np.arange(degree + 1)
    return np.asarray(np.array([comb(degree, i) for i in k]) * t**k * (1 - t) ** (degree - k))


@dataclass(frozen=True)
class Bezier:
    """The codec `bezier`: index_bits + 16·(degree + 1)/segment bits a weight.

    Attributes:
        index_bits: of a weight's place on the curve; 8 stores the full order of a segment of 256.
        segment: consecutive weights under one curve.
        degree: of the curve.
    """

    index_bits: int = 8
    segment: int = 256
    degree: int = 3
    name: ClassVar[str] = "bezier"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _geometry({"index_bits": self.index_bits, "segment": self.segment, "degree": self.degree})

    def encode(self, weight: NDArray[np.float32], statistics: Statistics = NO_STATISTICS) -> Encoded:
        """As `Codec.encode`; statistics are not used."""
        return self.encode_pieces(WholeMatrix(check_weight(weight)), statistics)

    def encode_pieces(self, source: RowSource, statistics: Statistics = NO_STATISTICS) -> Encoded:
        """As `CodesByPieces.encode_pieces`: the largest magnitude first, then segment by segment."""
        del statistics
        scale = max(float(np.abs(rows).max()) for rows in row_pieces(source)) or 1.0
        shape, known = source.matrix_shape, {**self.draft(source.matrix_shape), "scale": scale}
        arrays = {name: Filled(component) for name, component in self.layout(shape, known).items()}
        for run in runs(source, math.lcm(self.segment, 8)):  # eight places of any width end on a byte
            control, places = self._run(run, scale)
            arrays["control_points"].add(control)
            arrays["places"].add(places)
        components = {name: array.whole() for name, array in arrays.items()}
        return Encoded(self.name, self.version, shape, known, components)

    def _run(self, run: NDArray[np.float32], scale: float) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        """Control points, flat, and packed places of whole segments; only the last run's last one may be short."""
        segments = np.empty((-(-run.size // self.segment), self.segment), dtype=np.float64)
        # The tail repeats the last weight, so that its curve fits weights alone.
        segments.reshape(-1)[run.size :] = run[-1]
        segments.reshape(-1)[: run.size] = run
        parts = [self._fit(segments[start : start + _TILE] / scale) for start in range(0, len(segments), _TILE)]
        places = np.concatenate([place for _, place in parts]).reshape(-1)[: run.size]
        return np.concatenate([points for points, _ in parts]).reshape(-1), bits.pack(places, self.index_bits)

    def draft(self, shape: tuple[int, int]) -> dict[str, Parameter]:
        """As `Codec.draft`."""
        del shape
        own = {"index_bits": self.index_bits, "segment": self.segment, "degree": self.degree}
        return {**own, "scale": LONGEST_NUMBER}

    def _fit(self, segments: NDArray[np.float64]) -> tuple[NDArray[np.float16], NDArray[np.uint16]]:
        """Control points float16 [n, degree + 1] and places [n, segment] of segments within ±1."""
        count = 1 << self.index_bits
        basis = bernstein(count, self.degree)
        ranks = segments.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
        places = (ranks * count // self.segment).astype(np.int64)
        control = np.zeros((len(segments), self.degree + 1))
        least = np.full(len(segments), np.inf)
        best = (np.zeros(control.shape, dtype=np.float16), places)
        for _ in range(_FITTING_STEPS):
            control = _least_squares(segments, places, basis)
            rounded = np.clip(control, -6e4, 6e4).astype(np.float16)
            levels = rounded.astype(np.float64) @ basis.T
            places = _nearest_places(segments, levels)
            error = ((np.take_along_axis(levels, places, axis=1) - segments) ** 2).sum(axis=1)
            better = (error < least)[:, None]
            best = (np.where(better, rounded, best[0]), np.where(better, places, best[1]))
            least = np.minimum(error, least)
        return best[0], best[1].astype(np.uint16)

    def layout(self, shape: tuple[int, int], parameters: Mapping[str, Parameter]) -> dict[str, Component]:
        """As `Codec.layout`."""
        index_bits, segment, degree = _geometry(parameters)
        number(parameters, "scale")
        count = shape[0] * shape[1]
        return {
            "control_points": Component(np.float16, -(-count // segment) * (degree + 1)),
            "places": Component(np.uint8, bits.packed_bytes(count, index_bits)),
        }

    def decoder(self, encoded: Encoded) -> Decoder:
        """As `Codec.decoder`."""
        return _BezierDecoder(encoded, *_geometry(encoded.parameters))


def _geometry(parameters: Mapping[str, Parameter]) -> tuple[int, int, int]:
    """Index bits, segment and degree, checked."""
    return (
        integer(parameters, "index_bits", 1, 8),
        integer(parameters, "segment", 1, MAX_SEGMENT),
        integer(parameters, "degree", 1, MAX_DEGREE),
    )


def _least_squares(
    segments: NDArray[np.float64], places: NDArray[np.int64], basis: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Control points [n, degree + 1] that fit each segment's weights at their places."""
    rows = basis[places]
    normal = np.einsum("nsi,nsj->nij", rows, rows)
    # A segment whose weights share few places leaves control points free: they are drawn towards zero.
    normal += 1e-9 * segments.shape[1] * np.eye(basis.shape[1])
    right = np.einsum("nsi,ns->ni", rows, segments)
    return np.asarray(np.linalg.solve(normal, right[..., None])[..., 0])


def _nearest_places(segments: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the nearest level for each weight; levels need not ascend."""
    order = levels.argsort(axis=1, kind="stable")
    ascending = np.take_along_axis(levels, order, axis=1)
    edges = (ascending[:, :-1] + ascending[:, 1:]) / 2
    found = np.stack([np.searchsorted(edge, segment) for edge, segment in zip(edges, segments, strict=True)])
    return np.asarray(np.take_along_axis(order, found, axis=1))


@dataclass(frozen=True)
class _BezierDecoder:
    """Weights lie row after row; a segment's levels are computed where they are needed."""

    encoded: Encoded
    index_bits: int
    segment: int
    degree: int

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        columns = self.encoded.shape[1]
        low, high = start * columns, stop * columns
        first, last = low // self.segment, -(-high // self.segment)
        places = np.zeros((last - first) * self.segment, dtype=np.uint16)
        end = min(last * self.segment, self.encoded.shape[0] * columns)
        stored = bits.unpack(self.encoded.components["places"], self.index_bits, first * self.segment, end)
        places[: stored.size] = stored
        weights = self._segments(first, last, places)
        return weights[low - first * self.segment :][: high - low].reshape(stop - start, columns)

    def _segments(self, first: int, last: int, places: NDArray[np.uint16]) -> NDArray[np.float32]:
        """Weights of whole segments: their levels, then one gather; in tiles that stay in the cache."""
        width = self.degree + 1
        control = self.encoded.components["control_points"][first * width : last * width].astype(np.float32)
        control = control.reshape(-1, width) * np.float32(number(self.encoded.parameters, "scale"))
        basis = bernstein(1 << self.index_bits, self.degree).astype(np.float32)
        per_tile = max(1, _DECODED_TOGETHER // max(self.segment, len(basis)))
        weights = np.empty((last - first, self.segment), dtype=np.float32)
        for start in range(0, last - first, per_tile):
            part = slice(start, min(start + per_tile, last - first))
            # Products and sums one after the other: the same floats whatever library multiplies matrices.
            levels = control[part, :1] * basis[:, 0]
            for k in range(1, width):
                levels += control[part, k, None] * basis[:, k]
            own = places.reshape(-1, self.segment)[part]
            index = own + (np.arange(len(own)) * len(basis))[:, None]
            np.take(levels.reshape(-1), index, out=weights[part], mode="clip")
        return weights.reshape(-1)
