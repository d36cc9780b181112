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
from edgepack.export.formats.packed import RawTensors, expect, read_stored, read_stored_rows
from edgepack.model import TensorSpec, read_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

_FLOATS = ("f8_e4m3", "f8_e5m2")
SCALE_SUFFIXES = ("_scale_inv", "_scale")
HIDDEN_SUFFIXES = ("input_scale", "activation_scale", "output_scale", "k_scale", "v_scale", "q_scale", "qscale_act",
                   "input_zero_point", "output_zero_point", "input_global_scale")  # fmt: skip
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


@dataclass(frozen=True)
class Layout:
    """What one scale serves.

    Attributes:
        kind: `tensor`, `matrix` (of a stack), `row` or `block`.
        block: rows and columns of a block.
    """

    kind: str
    block: tuple[int, int] = (1, 1)


def find_layout(weight: Sequence[int], scale: Sequence[int], block: Sequence[int] | None, what: str) -> Layout:
    """What each number of a scale serves, by the scale's shape and the block that the configuration names.

    Where the configuration names a block, a grid of such blocks is meant, however many rows it has; only without one
    a grid that divides the weight is taken as it is (transformers' `Fp8Dequantize`).

    Raises:
        CheckpointError: the shape fits neither the tensor, nor its rows, nor its blocks.
    """
    shape, own = tuple(scale), tuple(weight)
    if np.prod(shape, dtype=np.int64) == 1:
        return Layout("tensor")
    if block is not None and shape == _grid(own, block):
        return Layout("block", (block[0], block[1]))
    if shape in (own[:-1], (*own[:-1], 1)):
        return Layout("row")
    if len(own) == 3 and shape in (own[:1], (own[0], 1, 1)):
        return Layout("matrix")
    if block is None and len(shape) == len(own) >= 2 and shape[:-2] == own[:-2] and 0 not in shape:
        rows, columns = own[-2] // shape[-2], own[-1] // shape[-1]
        if (rows * shape[-2], columns * shape[-1]) == own[-2:]:
            return Layout("block", (rows, columns))
    blocks = "" if block is None else f" of {list(block)}"
    raise CheckpointError(
        f"tensor '{what}': expected a scale for the tensor, its rows or blocks{blocks} of {list(own)},"
        f" got {list(shape)}"
    )


def _grid(weight: tuple[int, ...], block: Sequence[int]) -> tuple[int, ...]:
    rows, columns = weight[-2:] if len(weight) > 1 else (1, weight[0])
    grid = (-(-rows // block[0]), -(-columns // block[1]))
    return (*weight[:-2], *grid) if len(weight) > 1 else grid[1:]


def find_scaled(
    source: RawTensors, block: Sequence[int] | None, dtypes: Sequence[str] = _FLOATS, *, scaled: bool = False
) -> list[ScaledWeight]:
    """Every weight of 8-bit numbers, with its scale where it has one.

    Args:
        source: the stored tensors.
        block: rows and columns that share a scale, where the configuration names them.
        dtypes: storage types that are meant.
        scaled: every such weight must have a scale.

    Raises:
        CheckpointError: a scale whose shape fits neither the tensor, nor its rows, nor its blocks; or none.
    """
    names = [name for name, spec in source.specs.items() if spec.dtype in dtypes and spec.shape]
    names = [name for name in names if not name.endswith(SCALE_SUFFIXES)]
    found = [open_scaled(source, name, block) for name in names]
    without = next((weight.name for weight in found if weight.scale is None), None)
    if scaled and without is not None:
        raise CheckpointError(f"tensor '{without}': expected a scale such as '{without}_scale_inv', found none")
    return found


def open_scaled(source: RawTensors, name: str, block: Sequence[int] | None) -> ScaledWeight:
    """One weight of 8-bit numbers with its scale; raises CheckpointError where they do not fit."""
    scale = next((scale for scale in scale_names(name) if scale in source.specs), None)
    if scale is None:
        return ScaledWeight(source, name, None, Layout("tensor"))
    layout = find_layout(source.specs[name].shape, source.specs[scale].shape, block, scale)
    zero = f"{name}_zero_point" if source.specs[name].dtype == "i8" else None
    if zero is None or zero not in source.specs:
        return ScaledWeight(source, name, scale, layout)
    expect(source, zero, ("i8",), source.specs[scale].shape)
    return ScaledWeight(source, name, scale, layout, zero)


def scale_names(name: str) -> tuple[str, ...]:
    """Where the scale of a weight may stand; the last two are DeepSeek V4's and Mistral's."""
    module = name.removesuffix(".weight")
    more = () if module == name else (f"{module}.scale", f"{module}.qscale_weight")
    return (*(name + suffix for suffix in SCALE_SUFFIXES), *more)


def hidden_scales(source: RawTensors) -> frozenset[str]:
    """Stored scales of activations."""
    return frozenset(name for name in source.specs if name.rpartition(".")[2] in HIDDEN_SUFFIXES)


@dataclass(frozen=True)
class ScaledWeight:
    """One weight of 8-bit numbers: (q - zero) × scale.

    Attributes:
        source: where it is stored.
        name: its name.
        scale: its scale's name, or None.
        layout: what each number of the scale serves.
        zero: its zero points' name, laid out as the scale, or None.
    """

    source: RawTensors
    name: str
    scale: str | None
    layout: Layout
    zero: str | None = None

    @property
    def spec(self) -> TensorSpec:
        """The weight as a model sees it."""
        return self.source.specs[self.name]

    @property
    def parts(self) -> frozenset[str]:
        """The stored tensors."""
        return frozenset(name for name in (self.name, self.scale, self.zero) if name is not None)

    def read_rows(self, start: int, stop: int) -> Matrix:
        """As `PackedWeight.read_rows`."""
        stored = read_stored_rows(self.source, self.name, start, stop)
        values = VALUES[self.spec.dtype][stored] if self.spec.dtype in VALUES else stored.astype(np.float32)
        if self.zero is not None:
            values -= self._spread(self._zeros, start, stop)
        if self.scale is not None:
            values *= self._spread(self._scales, start, stop)
        return values

    def _spread(self, numbers: Matrix, start: int, stop: int) -> Matrix:
        """Numbers of rows `start` to `stop`, to be broadcast over [stop - start, columns]."""
        if self.layout.kind == "tensor":
            return numbers.reshape(1, 1)
        if self.layout.kind == "row":
            return numbers.reshape(-1, 1)[start:stop]
        rows = np.arange(start, stop)
        height = self.spec.shape[-2] if len(self.spec.shape) > 1 else 1
        if self.layout.kind == "matrix":
            return numbers.reshape(-1, 1)[rows // height]
        high, wide = self.layout.block
        grid = numbers.reshape(-1, -(-height // high), numbers.shape[-1])[rows // height, rows % height // high]
        factors: Matrix = np.repeat(grid, wide, axis=1)[:, : self.spec.columns]
        return factors

    @cached_property
    def _scales(self) -> Matrix:
        assert self.scale is not None
        if self.source.specs[self.scale].dtype in ("f8_e8m0", "u8"):
            exponents = read_stored(self.source, self.scale).astype(np.float32)
            powers: Matrix = np.exp2(exponents - np.float32(127)).astype(np.float32)
            return powers
        return read_tensor(self.source, self.scale)

    @cached_property
    def _zeros(self) -> Matrix:
        assert self.zero is not None
        zeros: Matrix = read_stored(self.source, self.zero).astype(np.float32)
        return zeros


def block_size(config: Mapping[str, Any]) -> Sequence[int] | None:
    """`weight_block_size` of a configuration, or None; raises CheckpointError for anything but two numbers."""
    block = config.get("weight_block_size")
    if block is None:
        return None
    if not isinstance(block, list) or len(block) != 2 or any(type(size) is not int or size < 1 for size in block):
        raise CheckpointError(f"quantization_config: expected weight_block_size of two numbers, got {block!r}")
    return block
