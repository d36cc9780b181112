"""8-bit floats and integers with scales: one a tensor, one a row, or one for each block of rows and columns.

Used by DeepSeek's and Qwen's fp8 checkpoints (`weight_scale_inv`, blocks of 128 × 128), by compressed-tensors and
FBGEMM (`weight_scale`). 8-bit formats: https://arxiv.org/abs/2209.05433
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CheckpointError
from edgepack.export.formats.packed import RawTensors, read_stored, read_stored_rows
from edgepack.model import TensorSpec, read_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

_FLOATS = ("f8_e4m3", "f8_e5m2")
_SUFFIXES = ("_scale_inv", "_scale")
HIDDEN_SUFFIXES = ("input_scale", "activation_scale", "output_scale", "k_scale", "v_scale", "q_scale")
"""Scales of activations and caches: nothing that a weight needs."""


def float8_values(exponent_bits: int, *, finite: bool) -> Matrix:
    """The value of each of the 256 codes.

    Args:
        exponent_bits: 4 (three bits of mantissa) or 5 (two).
        finite: the variant without infinities, in which only all ones are NaN (E4M3).
    """
    codes = np.arange(256)
    mantissa_bits = 7 - exponent_bits
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    bias = (1 << (exponent_bits - 1)) - 1
    normal = (1 + mantissa) * np.exp2(exponent - bias)
    values = sign * np.where(exponent == 0, mantissa * np.exp2(1.0 - bias), normal)
    if finite:
        values[(codes & 0x7F) == 0x7F] = np.nan
    else:
        special = exponent == (1 << exponent_bits) - 1
        values[special] = np.where(mantissa[special] == 0, sign[special] * np.inf, np.nan)
    narrow: Matrix = values.astype(np.float32)
    return narrow


VALUES = {"f8_e4m3": float8_values(4, finite=True), "f8_e5m2": float8_values(5, finite=False)}


def find_scaled(source: RawTensors, block: Sequence[int] | None, dtypes: Sequence[str] = _FLOATS) -> list[ScaledWeight]:
    """Every weight of 8-bit numbers, with its scale where it has one.

    Args:
        source: the stored tensors.
        block: rows and columns that share a scale, where the configuration names them.
        dtypes: storage types that are meant.

    Raises:
        CheckpointError: a scale whose shape fits neither the tensor, nor its rows, nor its blocks.
    """
    found = []
    for name, spec in source.specs.items():
        if spec.dtype in dtypes and len(spec.shape) >= 1:
            scale = next((name + suffix for suffix in _SUFFIXES if name + suffix in source.specs), None)
            found.append(ScaledWeight(source, name, scale, tuple(block) if block else None))
    for weight in found:
        weight.check()
    return found


def hidden_scales(source: RawTensors) -> frozenset[str]:
    """Stored scales of activations."""
    return frozenset(name for name in source.specs if name.rpartition(".")[2] in HIDDEN_SUFFIXES)


@dataclass(frozen=True)
class ScaledWeight:
    """One weight of 8-bit numbers.

    Attributes:
        source: where it is stored.
        name: its name.
        scale: its scale's name, or None.
        block: rows and columns that share a scale, or None.
    """

    source: RawTensors
    name: str
    scale: str | None
    block: tuple[int, ...] | None

    @property
    def spec(self) -> TensorSpec:
        """The weight as a model sees it."""
        return self.source.specs[self.name]

    @property
    def parts(self) -> frozenset[str]:
        """The stored tensors."""
        return frozenset({self.name} | ({self.scale} if self.scale else set()))

    def check(self) -> None:
        """Raise CheckpointError unless the scale's shape fits."""
        if self.scale is None:
            return
        shape = self.source.specs[self.scale].shape
        if np.prod(shape) == 1 or shape in (self.spec.shape[:-1], (*self.spec.shape[:-1], 1)):
            return
        if self.block is None or len(self.block) != 2 or len(shape) != len(self.spec.shape) or shape != self._grid:
            raise CheckpointError(
                f"tensor '{self.scale}': expected a scale for the tensor, its rows or blocks {self.block} of "
                f"{list(self.spec.shape)}, got {list(shape)}"
            )

    @property
    def _grid(self) -> tuple[int, ...]:
        assert self.block is not None
        if any(type(size) is not int or size < 1 for size in self.block):
            raise CheckpointError(f"quantization_config: expected weight_block_size of two numbers, got {self.block}")
        rows, columns = self.spec.shape[-2:] if len(self.spec.shape) > 1 else (1, self.spec.shape[0])
        return (*self.spec.shape[:-2], -(-rows // self.block[0]), -(-columns // self.block[1]))

    def read_rows(self, start: int, stop: int) -> Matrix:
        """As `PackedWeight.read_rows`."""
        stored = read_stored_rows(self.source, self.name, start, stop)
        values = VALUES[self.spec.dtype][stored] if self.spec.dtype in VALUES else stored.astype(np.float32)
        if self.scale is not None:
            values *= self._factors(start, stop)
        return values

    def _factors(self, start: int, stop: int) -> Matrix:
        """Scales of rows `start` to `stop`, to be broadcast over [stop - start, columns]."""
        scales = self._scales
        if scales.size == 1:
            return scales.reshape(1, 1)
        if scales.size == self.spec.rows:
            return scales.reshape(-1, 1)[start:stop]
        assert self.block is not None
        rows = np.arange(start, stop)
        height = self.spec.shape[-2]
        matrix, row = rows // height, rows % height
        grid = scales.reshape(-1, *scales.shape[-2:])[matrix, row // self.block[0]]
        factors: Matrix = np.repeat(grid, self.block[1], axis=1)[:, : self.spec.columns]
        return factors

    @cached_property
    def _scales(self) -> Matrix:
        assert self.scale is not None
        if self.source.specs[self.scale].dtype == "f8_e8m0":
            exponents = read_stored(self.source, self.scale).astype(np.float32)
            powers: Matrix = np.exp2(exponents - np.float32(127)).astype(np.float32)
            return powers
        return read_tensor(self.source, self.scale)


def block_size(config: Mapping[str, Any]) -> Sequence[int] | None:
    """`weight_block_size` of a configuration, or None; raises CheckpointError for anything but two numbers."""
    block = config.get("weight_block_size")
    if block is None:
        return None
    if not isinstance(block, list) or len(block) != 2 or any(type(size) is not int or size < 1 for size in block):
        raise CheckpointError(f"quantization_config: expected weight_block_size of two numbers, got {block!r}")
    return block
