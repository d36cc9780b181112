"""GPTQ's packing, versions 1 and 2: bit fields down the rows of the transposed weight, rows in any group order.

Layout: https://github.com/AutoGPTQ/AutoGPTQ and https://github.com/ModelCloud/GPTQModel. A weight [out, in] is stored
as qweight int32 [in·bits/32, out], qzeros int32 [groups, out·bits/32], scales f16 [groups, out] and g_idx int32 [in],
the group of each input (`desc_act` scatters them). Version 1 stores zero points minus one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CheckpointError, UnsupportedModelError
from edgepack.export.formats.by_module import gptqmodel_settings
from edgepack.export.formats.packed import (
    KeptArrays,
    RawTensors,
    expect,
    group_rows,
    read_stored,
    unpack_words,
    whole_number,
)
from edgepack.model import TensorSpec, read_tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

_WORD_BITS = 32
_SCALES = ("f16", "bf16", "f32")
_ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}
_BITS = (2, 3, 4, 8)
_Settings = Callable[[Mapping[str, Any], str], Mapping[str, Any]]


def find_gptq(source: RawTensors, config: Mapping[str, Any]) -> list[GPTQWeight]:
    """Every packed weight of a GPTQ checkpoint, each by its module's own settings (`dynamic`).

    Raises:
        UnsupportedModelError: a layout made for one kernel, such as Marlin's.
        CheckpointError: bits or shapes that contradict each other.
    """
    return find_packed(source, config, gptqmodel_settings, _BITS)


def find_packed(
    source: RawTensors, config: Mapping[str, Any], settings_of: _Settings, bits: Sequence[int]
) -> list[GPTQWeight]:
    """As `find_gptq`, with another way to find a module's settings and other widths."""
    kept = KeptArrays()
    names = [name.removesuffix(".qweight") for name in source.specs if name.endswith(".qweight")]
    return [_open(source, name, settings_of(config, name), bits, kept) for name in names]


def _zero_offset(config: Mapping[str, Any]) -> int:
    version = str(config.get("checkpoint_format") or config.get("format") or "gptq")
    if version not in _ZERO_OFFSETS or config.get("is_marlin_format"):
        raise UnsupportedModelError(f"GPTQ checkpoint: expected format gptq or gptq_v2, got {version!r}")
    return _ZERO_OFFSETS[version]


def _open(
    source: RawTensors, prefix: str, config: Mapping[str, Any], widths: Sequence[int], kept: KeptArrays
) -> GPTQWeight:
    bits, zero_offset = whole_number(config, "bits", widths), _zero_offset(config)
    words, outer = expect(source, f"{prefix}.qweight", ("i32",), (None, None))
    inner = words * _WORD_BITS // bits
    if inner * bits != words * _WORD_BITS or outer * bits % _WORD_BITS:
        raise CheckpointError(f"tensor '{prefix}.qweight': expected whole words of {bits}-bit fields, got {words} rows")
    groups = -(-inner // group_rows(config, inner))
    expect(source, f"{prefix}.qzeros", ("i32",), (groups, outer * bits // _WORD_BITS))
    expect(source, f"{prefix}.scales", _SCALES, (groups, outer))
    scattered = f"{prefix}.g_idx" in source.specs
    if scattered:
        expect(source, f"{prefix}.g_idx", ("i32", "i64"), (inner,))
    return GPTQWeight(source, prefix, (outer, inner), groups, bits, zero_offset, scattered, kept)


@dataclass(frozen=True)
class GPTQWeight:
    """One weight: (q - zero) × scale, both of the group that an input belongs to."""

    source: RawTensors
    prefix: str
    shape: tuple[int, int]
    groups: int
    bits: int
    zero_offset: int
    scattered: bool
    kept: KeptArrays

    @property
    def spec(self) -> TensorSpec:
        """The weight as a model sees it."""
        return TensorSpec(f"{self.prefix}.weight", self.shape, f"gptq{self.bits}")

    @property
    def parts(self) -> frozenset[str]:
        """The stored tensors."""
        names = ("qweight", "qzeros", "scales") + (("g_idx",) if self.scattered else ())
        return frozenset(f"{self.prefix}.{part}" for part in names)

    def read_rows(self, start: int, stop: int) -> Matrix:
        """As `PackedWeight.read_rows`."""
        words, zeros, scales, group_of = self.kept.get(self.prefix, self._load)
        values = unpack_words(np.ascontiguousarray(words[:, start:stop]), self.bits, self.shape[1])
        weights = (values - zeros[group_of, start:stop]) * scales[group_of, start:stop]
        return np.ascontiguousarray(weights.T, dtype=np.float32)

    def _load(self) -> tuple[NDArray[np.int32], NDArray[np.int32], Matrix, NDArray[np.intp]]:
        packed = read_stored(self.source, f"{self.prefix}.qzeros")
        zeros = unpack_words(np.ascontiguousarray(packed.T), self.bits, self.shape[0]).T + self.zero_offset
        words = read_stored(self.source, f"{self.prefix}.qweight")
        return words, zeros, read_tensor(self.source, f"{self.prefix}.scales"), self._group_of()

    def _group_of(self) -> NDArray[np.intp]:
        inner = self.shape[1]
        if not self.scattered:
            return np.arange(inner) // -(-inner // self.groups)
        group_of = read_stored(self.source, f"{self.prefix}.g_idx").astype(np.intp).reshape(-1)
        if group_of.min() < 0 or group_of.max() >= self.groups:
            raise CheckpointError(f"tensor '{self.prefix}.g_idx': expected groups from 0 to {self.groups - 1}")
        return group_of
