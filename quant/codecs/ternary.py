"""Ternary weights, -s, 0 or s: five to a byte, with one scale for the matrix, a row or 256 columns.

Training towards ternary weights is left to `edgepack.quant.passes`; here they are only rounded and stored.
Sources: BitNet b1.58 (arXiv 2402.17764) for the absmean rule; 3^5 = 243 ≤ 256 for the packing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgepack.errors import CodecError
from edgepack.quant.codecs.codec import (
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
from edgepack.quant.codecs.parameters import choice
from edgepack.quant.codecs.pieces import Filled, row_pieces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

TRITS_PER_BYTE = 5
BLOCK = 256  # columns under one scale when scales are per block; llama.cpp's TQ1_0 and TQ2_0 have the same
SCALES = ("tensor", "row", "block")
_POWERS = np.array([1, 3, 9, 27, 81], dtype=np.uint8)
_FITTING_STEPS = 8


def pack_trits(trits: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Five trits a byte: Σ (trit_i + 1)·3^i, the first being the least significant; the tail is padded with 0.

    Args:
        trits: -1, 0 or 1, one-dimensional.
    """
    digits = np.ones((-(-trits.size // TRITS_PER_BYTE), TRITS_PER_BYTE), dtype=np.uint8)
    digits.reshape(-1)[: trits.size] = (trits + 1).astype(np.uint8)
    packed: NDArray[np.uint8] = (digits * _POWERS).sum(axis=1, dtype=np.uint8)
    return packed


@lru_cache(maxsize=1)
def _trits_of_byte() -> NDArray[np.float32]:
    """The five trits of every byte below 243, float32 [243, 5]."""
    digits = np.arange(243)[:, None] // _POWERS.astype(np.int64) % 3
    return (digits - 1).astype(np.float32)


def unpack_trits(packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The trits as float32 [5 * len(packed)]; raises CodecError for a byte beyond 242."""
    if packed.size and int(packed.max()) > 242:
        raise CodecError(f"codec 'ternary': expected bytes up to 242, got {int(packed.max())}")
    return np.take(_trits_of_byte(), packed, axis=0).reshape(-1)


@dataclass(frozen=True)
class Ternary:
    """The codec `ternary`: 8/5 bits a weight and 16 a scale.

    Attributes:
        scale: how far one scale reaches: `tensor`, `row`, or `block` (256 columns of a row).
        fit: `absmean`, the mean magnitude as BitNet has it, or `least-squares`, refined until the error
            stops falling. Weights that are already ternary keep their own scale under both.
    """

    scale: str = "block"
    fit: str = "absmean"
    name: ClassVar[str] = "ternary"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        choice({"scale": self.scale}, "scale", SCALES)
        choice({"fit": self.fit}, "fit", ("absmean", "least-squares"))

    def encode(self, weight: NDArray[np.float32], statistics: Statistics = NO_STATISTICS) -> Encoded:
        """As `Codec.encode`; column importances weigh the least-squares fit."""
        return self.encode_pieces(WholeMatrix(check_weight(weight)), statistics)

    def encode_pieces(self, source: RowSource, statistics: Statistics = NO_STATISTICS) -> Encoded:
        """As `CodesByPieces.encode_pieces`; one scale for the matrix is found by reading it several times."""
        columns = source.matrix_shape[1]
        known = statistics.column_weights(columns) if self.fit == "least-squares" else None
        importance = (np.ones(columns) if known is None else known).astype(np.float32)
        common = self._common_scale(source, importance) if self.scale == "tensor" else None
        layout = self.layout(source.matrix_shape, self.draft(source.matrix_shape))
        found, packed, left = [], Filled(layout["trits"]), np.empty(0, dtype=np.int8)
        for rows in row_pieces(source):
            trits, scales = self._piece(rows, importance, common)
            flat = np.concatenate([left, trits])
            whole = flat.size // TRITS_PER_BYTE * TRITS_PER_BYTE
            left = flat[whole:]
            packed.add(pack_trits(flat[:whole]))
            found.append(scales)
        packed.add(pack_trits(left))
        scales = np.concatenate(found) if common is None else common
        components: dict[str, NDArray[Any]] = {"trits": packed.whole(), "scales": scales}
        return Encoded(self.name, self.version, source.matrix_shape, {"scale": self.scale}, components)

    def _piece(
        self, rows: NDArray[np.float32], importance: NDArray[np.float32], common: NDArray[np.float16] | None
    ) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
        """Trits of some rows, flat, and their scales; under the `common` one where there is one."""
        groups = _groups(rows, self.scale)
        scales = _absmean(groups) if common is None else common
        if common is None and self.fit == "least-squares":
            repeated = np.ascontiguousarray(np.broadcast_to(importance, rows.shape))
            scales = _least_squares(groups, scales, _groups(repeated, self.scale))
        return _ungroup(_round(groups, scales), rows.shape[1], self.scale), scales

    def _common_scale(self, source: RowSource, importance: NDArray[np.float32]) -> NDArray[np.float16]:
        """The scale of the whole matrix, float16 [1]."""
        largest, smallest, total = 0.0, np.inf, 0.0
        for rows in row_pieces(source):
            magnitudes = np.abs(rows)
            largest = max(largest, float(magnitudes.max()))
            smallest = min(smallest, float(np.where(magnitudes > 0, magnitudes, np.inf).min()))
            total += float(magnitudes.sum(dtype=np.float64))
        mean = total / (source.matrix_shape[0] * source.matrix_shape[1])
        scale = _half(np.array([largest if smallest >= largest else mean]))
        for _ in range(_FITTING_STEPS if self.fit == "least-squares" else 0):
            fitted = energy = 0.0
            for rows in row_pieces(source):
                trits = _round(rows.reshape(1, -1), scale).reshape(rows.shape)
                energy += float((importance * np.abs(trits)).sum(dtype=np.float64))
                fitted += float((importance * rows * trits).sum(dtype=np.float64))
            scale = _half(np.array([fitted / energy])) if energy > 0 else scale
        return scale

    def draft(self, shape: tuple[int, int]) -> dict[str, Parameter]:
        """As `Codec.draft`."""
        del shape
        return {"scale": self.scale}

    def layout(self, shape: tuple[int, int], parameters: Mapping[str, Parameter]) -> dict[str, Component]:
        """As `Codec.layout`."""
        scale = choice(parameters, "scale", SCALES)
        scales = {"tensor": 1, "row": shape[0], "block": shape[0] * -(-shape[1] // BLOCK)}[scale]
        trits = -(-shape[0] * shape[1] // TRITS_PER_BYTE)
        return {"trits": Component(np.uint8, trits), "scales": Component(np.float16, scales)}

    def decoder(self, encoded: Encoded) -> Decoder:
        """As `Codec.decoder`."""
        return _TernaryDecoder(encoded, choice(encoded.parameters, "scale", SCALES))


def _groups(array: NDArray[np.float32], scale: str) -> NDArray[np.float32]:
    """The weights under one scale as a row each; the last block of a row is padded with NaN."""
    if scale == "tensor":
        return array.reshape(1, -1)
    if scale == "row":
        return array
    rows, columns = array.shape
    padded = np.full((rows, -(-columns // BLOCK) * BLOCK), np.nan, dtype=np.float32)
    padded[:, :columns] = array
    return padded.reshape(-1, BLOCK)


def _ungroup(groups: NDArray[np.int8], columns: int, scale: str) -> NDArray[np.int8]:
    """The inverse of `_groups`, flat."""
    if scale != "block":
        return groups.reshape(-1)
    return groups.reshape(-1, -(-columns // BLOCK) * BLOCK)[:, :columns].reshape(-1)


def _absmean(groups: NDArray[np.float32]) -> NDArray[np.float16]:
    """Mean magnitude of each group, or the one magnitude where a group is already ternary."""
    magnitudes = np.abs(groups)
    largest = np.nanmax(magnitudes, axis=1)
    smallest = np.where(magnitudes > 0, magnitudes, np.inf).min(axis=1, initial=np.inf)
    mean = np.nanmean(magnitudes, axis=1, dtype=np.float64)
    return _half(np.where(smallest >= largest, largest, mean))


def _half(scales: NDArray[np.floating]) -> NDArray[np.float16]:
    """Scales as float16, the largest float16 where they are beyond it."""
    half: NDArray[np.float16] = np.minimum(scales, np.finfo(np.float16).max).astype(np.float16)
    return half


def _round(groups: NDArray[np.float32], scales: NDArray[np.float16]) -> NDArray[np.int8]:
    """clip(round(w / s), -1, 1); 0 in the padding and where the scale is 0."""
    divisor = scales.astype(np.float32)[:, None]
    trits = np.clip(np.rint(np.nan_to_num(groups) / np.where(divisor > 0, divisor, np.inf)), -1, 1)
    return trits.astype(np.int8)


def _least_squares(
    groups: NDArray[np.float32],
    scales: NDArray[np.float16],
    importance: NDArray[np.float32],
    steps: int = _FITTING_STEPS,
) -> NDArray[np.float16]:
    """Alternate rounding and s = Σ h·w·q / Σ h·q²; each step lowers the weighted error of every group."""
    weights, known = np.nan_to_num(groups), np.nan_to_num(importance)
    for _ in range(_FITTING_STEPS):
        trits = _round(groups, scales)
        energy = (known * np.abs(trits)).sum(axis=1)
        fitted = (known * weights * trits).sum(axis=1) / np.where(energy > 0, energy, 1)
        scales = _half(np.where(energy > 0, fitted, scales.astype(np.float32)))
    return scales


@dataclass(frozen=True)
class _TernaryDecoder:
    """Trits lie row after row, so rows may begin inside a byte."""

    encoded: Encoded
    scale: str

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        columns = self.encoded.shape[1]
        first, last = start * columns // TRITS_PER_BYTE, -(-stop * columns // TRITS_PER_BYTE)
        trits = unpack_trits(self.encoded.components["trits"][first:last])
        skip = start * columns - first * TRITS_PER_BYTE
        weights = trits[skip : skip + (stop - start) * columns].reshape(stop - start, columns)
        weights *= self._scales(start, stop)
        return weights

    def _scales(self, start: int, stop: int) -> NDArray[np.float32]:
        """What multiplies rows `start` to `stop`, in a shape that broadcasts over them."""
        scales = self.encoded.components["scales"]
        if self.scale == "tensor":
            return scales.astype(np.float32).reshape(1, 1)
        if self.scale == "row":
            return scales[start:stop].astype(np.float32)[:, None]
        columns = self.encoded.shape[1]
        blocks = -(-columns // BLOCK)
        per_block = scales[start * blocks : stop * blocks].astype(np.float32).reshape(stop - start, blocks)
        return np.repeat(per_block, BLOCK, axis=1)[:, :columns]
