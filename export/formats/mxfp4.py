"""MXFP4 as gpt-oss stores its experts: four-bit floats in groups of 32, which are ggml's own numbers in another order.

Layout: `convert_moe_packed_tensors` of transformers' integrations/mxfp4.py. `NAME_blocks` uint8 [experts, rows,
groups, 16], two neighbouring numbers a byte, the first in the low half; `NAME_scales` uint8 [experts, rows, groups],
exponents of two plus 127. ggml (`block_mxfp4`, ggml-common.h): the exponent, then number j of a group in the low half
of byte j and number j + 16 in the high half. So nothing is lost, whichever way one goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.export.formats.packed import RawTensors, expect, read_stored_rows
from edgepack.gguf.types import GGMLType
from edgepack.model import TensorSpec
from edgepack.quant.codecs.ggml.codec import dequantize_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

_BLOCKS, _SCALES = "_blocks", "_scales"
_GROUP = 32


def find_mxfp4(source: RawTensors, _config: Mapping[str, Any]) -> list[Mxfp4Weight]:
    """Every stack of experts in MXFP4, under the name of its blocks: shape [experts, rows, columns].

    Raises:
        CheckpointError: scales that are missing or do not belong to the blocks.
    """
    names = [name.removesuffix(_BLOCKS) for name in source.specs if name.endswith(_BLOCKS)]
    return [_open(source, name) for name in names]


def _open(source: RawTensors, name: str) -> Mxfp4Weight:
    experts, rows, groups, _ = expect(source, name + _BLOCKS, ("u8",), (None, None, None, _GROUP // 2))
    expect(source, name + _SCALES, ("u8",), (experts, rows, groups))
    return Mxfp4Weight(source, name, TensorSpec(name + _BLOCKS, (experts, rows, groups * _GROUP), "mxfp4"))


@dataclass(frozen=True)
class Mxfp4Weight:
    """A stack of experts: a `PackedWeight` that also gives blocks of ggml's.

    Attributes:
        source: the stored tensors.
        name: of the weight, without the suffixes.
        spec: as `PackedWeight.spec`.
    """

    source: RawTensors
    name: str
    spec: TensorSpec

    @property
    def parts(self) -> frozenset[str]:
        """As `PackedWeight.parts`."""
        return frozenset((self.name + _BLOCKS, self.name + _SCALES))

    @property
    def block_type(self) -> GGMLType:
        """The type of the blocks."""
        return GGMLType.MXFP4

    def read_blocks(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows `start` to `stop` (not included): uint8, shape [stop - start, bytes of a row]."""
        groups = self.spec.columns // _GROUP
        pairs = read_stored_rows(self.source, self.name + _BLOCKS, start * groups, stop * groups)
        scales = read_stored_rows(self.source, self.name + _SCALES, start, stop)
        numbers = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(-1, groups, _GROUP)
        halves = numbers[..., : _GROUP // 2] | numbers[..., _GROUP // 2 :] << 4
        blocks = np.concatenate([scales.reshape(-1, groups, 1), halves], axis=-1)
        return blocks.reshape(stop - start, -1)

    def read_rows(self, start: int, stop: int) -> Matrix:
        """As `PackedWeight.read_rows`."""
        blocks = self.read_blocks(start, stop)
        return dequantize_rows(GGMLType.MXFP4, blocks.reshape(-1), stop - start, self.spec.columns)
