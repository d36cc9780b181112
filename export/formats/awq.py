"""AutoAWQ's GEMM packing: eight 4-bit columns to a word, interleaved.

Layout: https://github.com/casper-hansen/AutoAWQ/blob/main/awq/modules/linear/gemm.py. A weight [out, in] is stored
transposed as qweight int32 [in, out/8], qzeros int32 [in/group, out/8], scales f16 [in/group, out].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CheckpointError, UnsupportedModelError
from edgepack.export.formats.packed import KeptArrays, RawTensors, expect, group_rows, read_stored, whole_number
from edgepack.model import TensorSpec, read_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

_BITS = 4
_FIELDS = 8
_SCALES = ("f16", "bf16", "f32")
# field i of a word (from its low end) holds column _ORDER[i] of the word's eight
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
# and so column c is in field _FIELD_OF[c]
_FIELD_OF = tuple(_ORDER.index(column) for column in range(_FIELDS))


def find_awq(source: RawTensors, config: Mapping[str, Any]) -> list[AWQWeight]:
    """Every packed weight of an AutoAWQ checkpoint.

    Raises:
        UnsupportedModelError: another packing than GEMM.
        CheckpointError: bits or shapes that contradict each other.
    """
    return find_packed_columns(source, config, lambda settings, _module: settings)


def find_packed_columns(
    source: RawTensors, config: Mapping[str, Any], settings_of: Callable[[Mapping[str, Any], str], Mapping[str, Any]]
) -> list[AWQWeight]:
    """As `find_awq`, with settings module by module."""
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise UnsupportedModelError(f"AWQ checkpoint: expected version 'gemm', got {version!r}")
    kept = KeptArrays()
    whole_number(config, _bits_key(config), (_BITS,))
    names = [name.removesuffix(".qweight") for name in source.specs if name.endswith(".qweight")]
    return [_open(source, name, _sizes(settings_of(config, name)), kept) for name in names]


def _bits_key(config: Mapping[str, Any]) -> str:
    return "bits" if "bits" in config else "w_bit"


def _sizes(config: Mapping[str, Any]) -> Mapping[str, Any]:
    whole_number(config, _bits_key(config), (_BITS,))
    return {**config, "group_size": config.get("group_size", config.get("q_group_size"))}


def _open(source: RawTensors, prefix: str, config: Mapping[str, Any], kept: KeptArrays) -> AWQWeight:
    inner, words = expect(source, f"{prefix}.qweight", ("i32",), (None, None))
    group = group_rows(config, inner)
    if inner % group:
        raise CheckpointError(f"tensor '{prefix}.qweight': expected rows in groups of {group}, got {inner} rows")
    expect(source, f"{prefix}.qzeros", ("i32",), (inner // group, words))
    expect(source, f"{prefix}.scales", _SCALES, (inner // group, words * _FIELDS))
    return AWQWeight(source, prefix, words * _FIELDS, inner, group, kept)


@dataclass(frozen=True)
class AWQWeight:
    """One weight: (q - zero) × scale, both of them a group's."""

    source: RawTensors
    prefix: str
    outer: int
    inner: int
    group: int
    kept: KeptArrays

    @property
    def spec(self) -> TensorSpec:
        """The weight as a model sees it."""
        return TensorSpec(f"{self.prefix}.weight", (self.outer, self.inner), "awq4")

    @property
    def parts(self) -> frozenset[str]:
        """The stored tensors."""
        return frozenset(f"{self.prefix}.{part}" for part in ("qweight", "qzeros", "scales"))

    def read_rows(self, start: int, stop: int) -> Matrix:
        """As `PackedWeight.read_rows`."""
        words, zero_words, scales = self.kept.get(self.prefix, self._load)
        zeros = _columns(zero_words, start, stop)
        values = _columns(words, start, stop).reshape(-1, self.group, stop - start)
        weights = (values - zeros[:, None]) * scales[:, None, start:stop]
        return np.ascontiguousarray(weights.reshape(self.inner, -1).T, dtype=np.float32)

    def _load(self) -> tuple[NDArray[np.int32], NDArray[np.int32], Matrix]:
        return (
            read_stored(self.source, f"{self.prefix}.qweight"),
            read_stored(self.source, f"{self.prefix}.qzeros"),
            read_tensor(self.source, f"{self.prefix}.scales"),
        )


def _columns(words: NDArray[np.int32], start: int, stop: int) -> NDArray[np.int32]:
    """Columns `start` to `stop` (not included) of a packed matrix: int32, shape [rows, stop - start]."""
    first = start // _FIELDS
    taken = words[:, first : -(-stop // _FIELDS), None].view(np.uint32)
    shifts = np.array([_BITS * field for field in _FIELD_OF], dtype=np.uint32)
    values: NDArray[np.int32] = ((taken >> shifts) & np.uint32(15)).astype(np.int32).reshape(len(words), -1)
    return values[:, start - first * _FIELDS : stop - first * _FIELDS]
