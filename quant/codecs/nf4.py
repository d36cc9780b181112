"""NF4 with double quantisation, in the layout of bitsandbytes: the INT4 that people start from.

It knows nothing of checkpoints; `dequantize` is what a reader of bitsandbytes files needs too.
Source: QLoRA (arXiv 2305.14314), and the file layout of bitsandbytes 0.43+: block 64, the scales coded in
eight bits by a dynamic map with one float for every 256 of them, and their mean as one offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

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
from edgepack.quant.codecs.parameters import number
from edgepack.quant.codecs.pieces import Filled, runs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

BLOCK = 64
NESTED_BLOCK = 256
# Quantiles of N(0, 1), normalised to [-1, 1] with an exact zero: the constants that QLoRA publishes.
NF4_LEVELS = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    dtype=np.float32,
)  # fmt: skip


@lru_cache(maxsize=1)
def dynamic_map() -> NDArray[np.float32]:
    """The 256 levels of the signed dynamic data type: seven decades, finer steps in the higher ones.

    Source: 8-bit optimizers (arXiv 2110.02861), section 2.2: decade i holds the centres of 2^i equal parts
    of [0.1, 1], both signs; 0 and 1 fill up to 256.
    """
    levels = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1, 2**decade + 1, dtype=np.float32)
        centres = (edges[:-1] + edges[1:]) / 2 * np.float32(10.0 ** (decade - 6))
        levels += [*centres.tolist(), *(-centres).tolist()]
    return np.sort(np.array(levels, dtype=np.float32))


def nearest_level(values: NDArray[np.float32], levels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Index of the nearest of the ascending `levels`; ties go to the lower one."""
    edges = (levels[:-1] + levels[1:]) / 2
    return np.searchsorted(edges, values).astype(np.uint8)


def dequantize_absmax(
    codes: NDArray[np.uint8], nested_absmax: NDArray[np.float32], offset: float
) -> NDArray[np.float32]:
    """Block scales from their eight-bit codes; code i belongs to nested_absmax[i // 256]."""
    nested = np.repeat(nested_absmax, NESTED_BLOCK)[: codes.size]
    scales: NDArray[np.float32] = dynamic_map()[codes] * nested + np.float32(offset)
    return scales


def dequantize(packed: NDArray[np.uint8], absmax: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights of whole blocks: two a byte with the first in the high four bits, times their block's scale.

    Args:
        packed: uint8 [n / 2].
        absmax: float32 [ceil(n / 64)].

    Returns:
        float32 [n].
    """
    padded = np.zeros(absmax.size * (BLOCK // 2), dtype=np.uint8)
    padded[: packed.size] = packed
    pairs = np.take(_pair_levels(), padded, axis=0)
    weights = pairs.reshape(absmax.size, BLOCK)
    weights *= absmax[:, None]
    return weights.reshape(-1)[: 2 * packed.size]


@lru_cache(maxsize=1)
def _pair_levels() -> NDArray[np.float32]:
    """Both weights of every byte, float32 [256, 2]."""
    codes = np.arange(256)
    return np.stack([NF4_LEVELS[codes >> 4], NF4_LEVELS[codes & 15]], axis=1)


@dataclass(frozen=True)
class NF4:
    """The codec `nf4`: 4 + 8/64 + 32/16384 = 4.127 bits a weight. It has no options."""

    name: ClassVar[str] = "nf4"
    version: ClassVar[int] = 1

    def encode(self, weight: NDArray[np.float32], statistics: Statistics = NO_STATISTICS) -> Encoded:
        """As `Codec.encode`; statistics are not used."""
        return self.encode_pieces(WholeMatrix(check_weight(weight)), statistics)

    def encode_pieces(self, source: RowSource, statistics: Statistics = NO_STATISTICS) -> Encoded:
        """As `CodesByPieces.encode_pieces`: blocks' scales first, whose mean is taken off, then the weights."""
        del statistics
        absmax = np.concatenate([_largest(flat) for flat in runs(source, BLOCK)])
        offset = np.float32(absmax.mean())
        codes, nested = _quantize_absmax(absmax - offset)
        shape, parameters = source.matrix_shape, {"offset": float(offset)}
        weights, block = Filled(self.layout(shape, parameters)["weights"]), 0
        for flat in runs(source, BLOCK):
            blocks = -(-flat.size // BLOCK)
            weights.add(_pack_levels(flat, absmax[block : block + blocks]))
            block += blocks
        components: dict[str, NDArray[Any]] = {"weights": weights.whole(), "absmax": codes, "nested_absmax": nested}
        return Encoded(self.name, self.version, shape, parameters, components)

    def draft(self, shape: tuple[int, int]) -> dict[str, Parameter]:
        """As `Codec.draft`."""
        del shape
        return {"offset": LONGEST_NUMBER}

    def layout(self, shape: tuple[int, int], parameters: Mapping[str, Parameter]) -> dict[str, Component]:
        """As `Codec.layout`."""
        number(parameters, "offset")
        count = shape[0] * shape[1]
        blocks = -(-count // BLOCK)
        return {
            "weights": Component(np.uint8, -(-count // 2)),
            "absmax": Component(np.uint8, blocks),
            "nested_absmax": Component(np.float32, -(-blocks // NESTED_BLOCK)),
        }

    def decoder(self, encoded: Encoded) -> Decoder:
        """As `Codec.decoder`."""
        return _NF4Decoder(encoded, number(encoded.parameters, "offset"))


def _largest(flat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Largest magnitude of every block; weights [n], the last block may be short."""
    largest: NDArray[np.float32] = np.abs(_padded(flat)).max(axis=1)
    return largest


def _padded(flat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blocks of weights [n], the last filled up with zeros: float32 [blocks, 64]."""
    blocks = np.zeros((-(-flat.size // BLOCK), BLOCK), dtype=np.float32)
    blocks.reshape(-1)[: flat.size] = flat
    return blocks


def _pack_levels(flat: NDArray[np.float32], absmax: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Two weights a byte, the first in the high half: uint8 [ceil(n / 2)]."""
    divisors: NDArray[np.float32] = np.where(absmax > 0, absmax, np.float32(1))[:, None]
    scaled = _padded(flat) / divisors
    levels = nearest_level(scaled.reshape(-1)[: flat.size + flat.size % 2], NF4_LEVELS)
    return np.asarray((levels[::2] << 4) | levels[1::2])


def _quantize_absmax(centred: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Eight-bit codes of scales less their mean, and the largest magnitude of every 256."""
    groups = np.zeros((-(-centred.size // NESTED_BLOCK), NESTED_BLOCK), dtype=np.float32)
    groups.reshape(-1)[: centred.size] = centred
    nested = np.abs(groups).max(axis=1)
    scaled = groups / np.where(nested > 0, nested, np.float32(1))[:, None]
    return nearest_level(scaled.reshape(-1)[: centred.size], dynamic_map()), nested


@dataclass(frozen=True)
class _NF4Decoder:
    """Weights lie row after row, so a range of rows is a range of blocks."""

    encoded: Encoded
    offset: float

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        columns = self.encoded.shape[1]
        first, last = start * columns // BLOCK, -(-stop * columns // BLOCK)
        packed = self.encoded.components["weights"][first * (BLOCK // 2) : last * (BLOCK // 2)]
        weights = dequantize(packed, self._absmax(first, last))
        skip = start * columns - first * BLOCK
        return weights[skip : skip + (stop - start) * columns].reshape(stop - start, columns)

    def _absmax(self, first: int, last: int) -> NDArray[np.float32]:
        """Scales of blocks `first` (included) to `last` (not included)."""
        group = first // NESTED_BLOCK
        codes = self.encoded.components["absmax"][group * NESTED_BLOCK : last]
        nested = self.encoded.components["nested_absmax"][group : -(-last // NESTED_BLOCK)]
        return dequantize_absmax(codes, nested, self.offset)[first - group * NESTED_BLOCK :]
