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
from edgepack.export.formats.by_module import Groups
from edgepack.export.formats.float8 import ScaledWeight, open_scaled
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
_SCALED = ("f8_e4m3", "f8_e5m2", "i8")
_SCALED_FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "mxfp8-quantized")
_KINDS = {"channel": "row", "block": "block", "group": "block"}


def find_compressed(source: RawTensors, config: Mapping[str, Any]) -> list[PackedWeight]:
    """Every packed weight of a compressed-tensors checkpoint, each by the group that targets its module.

    Raises:
        UnsupportedModelError: a format other than packed integers or scaled 8-bit numbers.
        CheckpointError: a configuration or shapes that contradict each other.
    """
    _refuse_transforms(config)
    groups = Groups(config)
    found: list[PackedWeight] = []
    for name, spec in source.specs.items():
        if name.endswith(".weight_packed"):
            found.append(_open_packed(source, name.removesuffix("_packed"), groups))
        elif name.endswith(".weight") and spec.dtype in _SCALED:
            found.append(_open_scaled(source, name, groups))
    return found


def _refuse_transforms(config: Mapping[str, Any]) -> None:
    """Rotations that the model applies while it runs change what its weights mean."""
    transforms = config.get("transform_config")
    if isinstance(transforms, dict) and transforms.get("config_groups"):
        raise UnsupportedModelError("compressed-tensors checkpoint: transform_config: rotations are not undone")


def _open_packed(source: RawTensors, name: str, groups: Groups) -> PackedRows:
    group = groups.of(name.removesuffix(".weight"))
    if group.layout != "pack-quantized" or group.weights.get("type", "int") != "int":
        raise UnsupportedModelError(f"compressed-tensors checkpoint: format {group.layout!r} is not known")
    return _open(source, name, group.weights, whole_number(group.weights, "num_bits", range(2, 9)))


def _open_scaled(source: RawTensors, name: str, groups: Groups) -> ScaledWeight:
    """A weight of 8-bit numbers; the strategy says what each scale serves."""
    group = groups.of(name.removesuffix(".weight"))
    if group.layout not in _SCALED_FORMATS:
        raise UnsupportedModelError(f"compressed-tensors checkpoint: format {group.layout!r} is not known")
    weight = open_scaled(source, name, _block(group.weights))
    if weight.scale is None:
        raise CheckpointError(f"tensor '{name}': expected a scale '{name}_scale', found none")
    strategy = group.weights.get("strategy")
    wanted = _KINDS.get(strategy) if isinstance(strategy, str) else None
    if wanted is not None and weight.layout.kind not in (wanted, "tensor"):
        got = f"{list(source.specs[weight.scale].shape)} for {list(weight.spec.shape)}"
        raise CheckpointError(f"tensor '{weight.scale}': strategy {strategy!r} needs another shape, got {got}")
    return weight


def _block(weights: Mapping[str, Any]) -> list[int] | None:
    """Rows and columns that share a scale, where the strategy makes blocks."""
    if weights.get("strategy") == "group":
        return [1, whole_number(weights, "group_size")]
    block = weights.get("block_structure")
    if block is None or weights.get("strategy", "block") != "block":
        return None
    if not isinstance(block, list) or len(block) != 2 or any(type(size) is not int or size < 1 for size in block):
        raise CheckpointError(f"quantization_config: expected block_structure of two numbers, got {block!r}")
    return block


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
