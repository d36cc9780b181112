"""compressed-tensors: pack-quantized integers along the rows, and 8-bit floats or integers with scales.

Layout: https://github.com/vllm-project/compressed-tensors. A weight [out, in] of b bits is stored as weight_packed
int32 [out, in·b/32] of values offset by 2^(b-1), weight_scale [out, groups], weight_shape [2] and, where asymmetric,
weight_zero_point int32 [out·b/32, groups]; weight_g_idx [in] scatters the groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CheckpointError, UnsupportedModelError
from edgepack.export.formats.float8 import find_scaled
from edgepack.export.formats.packed import (
    RawTensors,
    expect,
    group_rows,
    read_stored,
    read_stored_rows,
    unpack_words,
    whole_number,
)
from edgepack.model import TensorSpec, read_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgepack.export.formats.packed import PackedWeight

    Matrix = NDArray[np.float32]

_WORD_BITS = 32
_SCALES = ("f16", "bf16", "f32")
_SCALED_FORMATS = ("float-quantized", "int-quantized", "naive-quantized")


def find_compressed(source: RawTensors, config: Mapping[str, Any]) -> list[PackedWeight]:
    """Every packed weight of a compressed-tensors checkpoint.

    Raises:
        UnsupportedModelError: a format other than packed integers or scaled 8-bit numbers.
        CheckpointError: a configuration or shapes that contradict each other.
    """
    layout = config.get("format")
    weights = _weight_scheme(config)
    if layout in _SCALED_FORMATS:
        block = weights.get("block_structure")
        return list(find_scaled(source, block if isinstance(block, list) else None, ("f8_e4m3", "f8_e5m2", "i8")))
    if layout != "pack-quantized" or weights.get("type", "int") != "int":
        raise UnsupportedModelError(f"compressed-tensors checkpoint: format {layout!r} is not known")
    bits = whole_number(weights, "num_bits", range(2, 9))
    names = [name.removesuffix("_packed") for name in source.specs if name.endswith(".weight_packed")]
    return [_open(source, name, weights, bits) for name in names]


def _weight_scheme(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The scheme of weights, which all groups of layers must share."""
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError("quantization_config: expected config_groups, got none")
    schemes = [group.get("weights") for group in groups.values() if isinstance(group, dict)]
    first = schemes[0] if schemes else None
    if not isinstance(first, dict) or any(scheme != first for scheme in schemes):
        raise UnsupportedModelError("compressed-tensors checkpoint: expected one scheme for all weights, got several")
    return first


def _open(source: RawTensors, name: str, scheme: Mapping[str, Any], bits: int) -> PackedRows:
    expect(source, f"{name}_shape", ("i64", "i32"), (2,))
    outer, inner = (int(size) for size in read_stored(source, f"{name}_shape"))
    if min(outer, inner) < 1 or max(outer, inner) >= 2**40:
        raise CheckpointError(f"tensor '{name}_shape': expected positive sizes, got {[outer, inner]}")
    expect(source, f"{name}_packed", ("i32",), (outer, -(-inner * bits // _WORD_BITS)))
    groups = -(-inner // group_rows(scheme, inner))
    expect(source, f"{name}_scale", _SCALES, (outer, groups))
    if f"{name}_zero_point" in source.specs:
        expect(source, f"{name}_zero_point", ("i32",), (-(-outer * bits // _WORD_BITS), groups))
    if f"{name}_g_idx" in source.specs:
        expect(source, f"{name}_g_idx", ("i32", "i64"), (inner,))
    return PackedRows(source, name, (outer, inner), groups, bits)


@dataclass(frozen=True)
class PackedRows:
    """One weight: (q - zero) × scale, both of them a group's."""

    source: RawTensors
    name: str
    shape: tuple[int, int]
    groups: int
    bits: int

    @property
    def spec(self) -> TensorSpec:
        """The weight as a model sees it."""
        return TensorSpec(self.name, self.shape, f"int{self.bits}")

    @property
    def parts(self) -> frozenset[str]:
        """The stored tensors."""
        names = (f"{self.name}_{part}" for part in ("packed", "scale", "shape", "zero_point", "g_idx"))
        return frozenset(name for name in names if name in self.source.specs)

    def read_rows(self, start: int, stop: int) -> Matrix:
        """As `PackedWeight.read_rows`."""
        words = read_stored_rows(self.source, f"{self.name}_packed", start, stop)
        values = unpack_words(np.ascontiguousarray(words.T), self.bits, self.shape[1]).T
        zeros, scales = self._zeros[start:stop], self._scales[start:stop]
        weights = (values - zeros[:, self._group_of]) * scales[:, self._group_of]
        return np.ascontiguousarray(weights, dtype=np.float32)

    @cached_property
    def _scales(self) -> Matrix:
        return read_tensor(self.source, f"{self.name}_scale")

    @cached_property
    def _zeros(self) -> NDArray[np.int32]:
        name = f"{self.name}_zero_point"
        if name not in self.source.specs:
            return np.full((self.shape[0], self.groups), 1 << (self.bits - 1), dtype=np.int32)
        return unpack_words(read_stored(self.source, name), self.bits, self.shape[0])

    @cached_property
    def _group_of(self) -> NDArray[np.intp]:
        name = f"{self.name}_g_idx"
        if name not in self.source.specs:
            return np.arange(self.shape[1]) // -(-self.shape[1] // self.groups)
        group_of = read_stored(self.source, name).astype(np.intp).reshape(-1)
        if group_of.min() < 0 or group_of.max() >= self.groups:
            raise CheckpointError(f"tensor '{name}': expected groups from 0 to {self.groups - 1}")
        return group_of
