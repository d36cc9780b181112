"""SeedLM: a block of weights as the seed of a shift register and a few small coefficients.

Storage and decoding, with numpy alone; finding the best seeds is left to `seedlm_search`, which uses torch.
Source: SeedLM (arXiv 2410.10714). A block of C weights w becomes a seed s of K bits, an exponent e of 4 bits
and P coefficients q in [-8, 7]: w ≈ U(s)·q·2^e. Bits a weight: (K + 4 + 4P) / C.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from edgepack.errors import CodecError
from edgepack.quant.codecs import bits
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
from edgepack.quant.codecs.parameters import choice, integer
from edgepack.quant.codecs.pieces import Filled, runs
from edgepack.quant.codecs.seedlm import lfsr
from edgepack.quant.codecs.seedlm.found import COEFFICIENT_BITS, pack_coefficients

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edgepack.quant.codecs.seedlm.found import Found

EXPONENT_BITS = 4
MAX_BLOCK = 64
_LOWEST_BIAS = -200
# Blocks decoded together: their arrays (some 16 of 32 KiB) stay in a second-level cache.
_TILE = 8192
# Weights of matrices that are searched together: beyond a million blocks a pruned search gains no more.
_TOGETHER = 1 << 23
# Weights of a model from which `auto` prunes: every seed for each block takes two cores over an hour and a half then.
_PRUNED_FROM = 10**9


@dataclass(frozen=True)
class SeedLM:
    """The codec `seedlm`.

    Attributes:
        block: C, weights in a block.
        coefficients: P, coefficients of a block.
        register_bits: K, the length of the register.
        search: `exhaustive`, every seed for every block; `pruned`, a list of likely seeds for each direction in
            space; `auto`, pruned for models of 10⁹ weights and more.
        device: torch's name of the device that searches.
    """

    block: int = 8
    coefficients: int = 3
    register_bits: int = 16
    search: str = "auto"
    device: str = "cpu"
    name: ClassVar[str] = "seedlm"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _geometry(self.parameters(0))
        choice({"search": self.search}, "search", ("auto", "exhaustive", "pruned"))

    def suited_to(self, weights: int) -> tuple[SeedLM, str]:
        """As `SuitsSize.suited_to`: which search `auto` is."""
        if self.search != "auto":
            return self, ""
        if weights < _PRUNED_FROM:
            return replace(self, search="exhaustive"), ""
        note = (
            f"seedlm: {weights / 1e9:.1f} B weights: blocks try only likely seeds, which leaves one or two per"
            " cent more squared error in a fraction of the time; search=exhaustive tries every seed"
        )
        return replace(self, search="pruned"), note

    def parameters(self, exponent_bias: int) -> dict[str, Parameter]:
        """What is stored beside the arrays; exponents are stored less `exponent_bias`."""
        return {
            "block": self.block,
            "coefficients": self.coefficients,
            "register_bits": self.register_bits,
            "exponent_bias": exponent_bias,
        }

    def encode(self, weight: NDArray[np.float32], statistics: Statistics = NO_STATISTICS) -> Encoded:
        """As `Codec.encode`; column importances weigh the residual. Needs torch."""
        return self.encode_pieces(WholeMatrix(check_weight(weight)), statistics)

    def encode_pieces(self, source: RowSource, statistics: Statistics = NO_STATISTICS) -> Encoded:
        """As `CodesByPieces.encode_pieces`. Needs torch."""
        from edgepack.quant.codecs.seedlm.search import search_seeds

        columns, first, found = source.matrix_shape[1], 0, []
        weights = statistics.column_weights(columns)
        for run in runs(source, 8 * self.block, _TOGETHER):  # eight seeds of any width end on a byte
            found.append(search_seeds(run, self, weights, columns, first))
            first += run.size
        return store(source.matrix_shape, self, found)

    @property
    def weights_together(self) -> int:
        """As `CodesTogether.weights_together`."""
        return _TOGETHER if self.search == "pruned" else 0

    def encode_together(self, weights: Sequence[NDArray[np.float32]]) -> list[Encoded]:
        """As `CodesTogether.encode_together`: the pruned search finds more blocks of each direction. Needs torch."""
        from edgepack.quant.codecs.seedlm.search import search_together

        arrays = [check_weight(weight) for weight in weights]
        found = search_together(arrays, self)
        return [store((array.shape[0], array.shape[1]), self, [own]) for array, own in zip(arrays, found, strict=True)]

    def draft(self, shape: tuple[int, int]) -> dict[str, Parameter]:
        """As `Codec.draft`."""
        del shape
        return self.parameters(_LOWEST_BIAS)

    def layout(self, shape: tuple[int, int], parameters: Mapping[str, Parameter]) -> dict[str, Component]:
        """As `Codec.layout`."""
        block, coefficients, register_bits = _geometry(parameters)
        blocks = -(-shape[0] * shape[1] // block)
        seeds = bits.packed_bytes(blocks, register_bits)
        return {
            "seeds": Component(np.uint16, blocks) if register_bits == 16 else Component(np.uint8, seeds),
            "exponents": Component(np.uint8, bits.packed_bytes(blocks, EXPONENT_BITS)),
            "coefficients": Component(np.uint8, bits.packed_bytes(blocks * coefficients, COEFFICIENT_BITS)),
        }

    def decoder(self, encoded: Encoded) -> Decoder:
        """As `Codec.decoder`."""
        return SeedDecoder(encoded)


def _geometry(parameters: Mapping[str, Parameter]) -> tuple[int, int, int]:
    """C, P and K, checked."""
    block = integer(parameters, "block", 1, MAX_BLOCK)
    coefficients = integer(parameters, "coefficients", 1, block)
    integer(parameters, "exponent_bias", _LOWEST_BIAS, -_LOWEST_BIAS)
    return block, coefficients, integer(parameters, "register_bits", 2, 16)


def store(shape: tuple[int, int], codec: SeedLM, found: list[Found]) -> Encoded:
    """Pack what a search found.

    Args:
        shape: (rows, columns) of the matrix.
        codec: gives C, P and K.
        found: of its runs of weights, in order; each but the last has a multiple of eight blocks. Taken apart.
    """
    tops = [int(run.exponents.max()) for run in found]
    top = max(tops) if max(tops) > np.iinfo(np.int16).min else 0
    arrays = {name: Filled(part) for name, part in codec.layout(shape, codec.parameters(top - 15)).items()}
    while found:
        run = found.pop(0)
        clipped = np.clip(run.exponents, top - 15, top)
        seeds = bits.pack(run.seeds, codec.register_bits)
        arrays["seeds"].add(seeds.view(np.uint16) if codec.register_bits == 16 else seeds)
        arrays["exponents"].add(bits.pack(clipped - (top - 15), EXPONENT_BITS))
        arrays["coefficients"].add(_in_range(run, clipped, codec.coefficients))
    components = {name: array.whole() for name, array in arrays.items()}
    return Encoded(codec.name, codec.version, shape, codec.parameters(top - 15), components)


def _in_range(run: Found, clipped: NDArray[np.int16], count: int) -> NDArray[np.uint8]:
    """Packed coefficients under the clipped exponents: blocks 2^15 times smaller than the largest lose some."""
    if (run.exponents >= clipped).all():
        return run.coefficients
    blocks = len(run.seeds)
    signed = (bits.unpack(run.coefficients, COEFFICIENT_BITS, 0, blocks * count).astype(np.int16) ^ 8) - 8
    lost = np.clip(run.exponents.astype(np.int32) - clipped, -100, 0)
    return pack_coefficients(np.rint(np.ldexp(signed.reshape(blocks, count), lost[:, None])).astype(np.int8))


class SeedDecoder:
    """Gathers U(s) along the register's cycle and multiplies it with the coefficients."""

    def __init__(self, encoded: Encoded) -> None:
        self._encoded = encoded
        self._block, self._coefficients, self._bits = _geometry(encoded.parameters)
        bias = integer(encoded.parameters, "exponent_bias", _LOWEST_BIAS, -_LOWEST_BIAS)
        self._scales = np.ldexp(np.float64(1), np.arange(16) + bias).astype(np.float32)
        self._cycle = lfsr.normalised_cycle(self._bits, self._block * self._coefficients)
        self._positions = lfsr.positions(self._bits)

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """As `Decoder.rows`."""
        columns = self._encoded.shape[1]
        first, last = start * columns // self._block, -(-stop * columns // self._block)
        weights = np.empty((last - first, self._block), dtype=np.float32)
        for tile in range(first, last, _TILE):
            end = min(tile + _TILE, last)
            self._decode_blocks(tile, end, weights[tile - first : end - first])
        skip = start * columns - first * self._block
        return weights.reshape(-1)[skip : skip + (stop - start) * columns].reshape(stop - start, columns)

    def _decode_blocks(self, first: int, last: int, weights: NDArray[np.float32]) -> None:
        """Blocks `first` (included) to `last` (not included) into weights [last - first, C]."""
        position = np.take(self._positions, self._seeds(first, last))
        coefficients = self._scaled_coefficients(first, last)
        gathered, total = np.empty(last - first, np.float32), np.empty(last - first, np.float32)
        for row in range(self._block):
            total.fill(0)
            for column in range(self._coefficients):
                offset = row * self._coefficients + column
                np.take(self._cycle[offset:], position, out=gathered, mode="clip")
                gathered *= coefficients[column]
                total += gathered
            weights[:, row] = total

    def _seeds(self, first: int, last: int) -> NDArray[np.uint16]:
        stored = self._encoded.components["seeds"]
        seeds = stored[first:last] if self._bits == 16 else bits.unpack(stored, self._bits, first, last)
        if not seeds.all():
            raise CodecError(f"codec 'seedlm': block {first + int(np.argmin(seeds))}: seed 0 is not a state")
        return seeds

    def _scaled_coefficients(self, first: int, last: int) -> list[NDArray[np.float32]]:
        """q·2^e, one array [last - first] for each coefficient."""
        p = self._coefficients
        packed = self._encoded.components["coefficients"]
        nibbles = bits.unpack(packed, COEFFICIENT_BITS, first * p, last * p).reshape(-1, p)
        signed = (nibbles.astype(np.int16) ^ 8) - 8
        exponents = bits.unpack(self._encoded.components["exponents"], EXPONENT_BITS, first, last)
        scales = np.take(self._scales, exponents)
        return [signed[:, column].astype(np.float32) * scales for column in range(p)]
