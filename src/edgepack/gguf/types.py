"""Tensor and metadata value types of GGUF, with their sizes; it reads and writes no files."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from math import prod
from typing import Any

from edgepack.errors import GGUFError


class GGMLType(IntEnum):
    """Tensor types, numbered as `enum ggml_type` in ggml.h."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41
    Q2_0 = 42

    @property
    def block_size(self) -> int:
        """Weights in one block."""
        return _BLOCKS[self][0]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return _BLOCKS[self][1]

    @property
    def is_quantized(self) -> bool:
        """Whether blocks hold more than one weight."""
        return self.block_size > 1

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row.

        Raises:
            GGUFError: `columns` is not a multiple of the block size.
        """
        if columns % self.block_size:
            raise GGUFError(f"type {self.name}: expected rows of a multiple of {self.block_size}, got {columns}")
        return columns // self.block_size * self.block_bytes


# (weights a block, bytes a block): the structs of ggml-common.h; tests hold them against gguf-py.
_BLOCKS: dict[GGMLType, tuple[int, int]] = {
    GGMLType.F32: (1, 4),
    GGMLType.F16: (1, 2),
    GGMLType.BF16: (1, 2),
    GGMLType.F64: (1, 8),
    GGMLType.I8: (1, 1),
    GGMLType.I16: (1, 2),
    GGMLType.I32: (1, 4),
    GGMLType.I64: (1, 8),
    GGMLType.Q4_0: (32, 18),
    GGMLType.Q4_1: (32, 20),
    GGMLType.Q5_0: (32, 22),
    GGMLType.Q5_1: (32, 24),
    GGMLType.Q8_0: (32, 34),
    GGMLType.Q8_1: (32, 36),
    GGMLType.Q2_K: (256, 84),
    GGMLType.Q3_K: (256, 110),
    GGMLType.Q4_K: (256, 144),
    GGMLType.Q5_K: (256, 176),
    GGMLType.Q6_K: (256, 210),
    GGMLType.Q8_K: (256, 292),
    GGMLType.IQ1_S: (256, 50),
    GGMLType.IQ1_M: (256, 56),
    GGMLType.IQ2_XXS: (256, 66),
    GGMLType.IQ2_XS: (256, 74),
    GGMLType.IQ2_S: (256, 82),
    GGMLType.IQ3_XXS: (256, 98),
    GGMLType.IQ3_S: (256, 110),
    GGMLType.IQ4_NL: (32, 18),
    GGMLType.IQ4_XS: (256, 136),
    GGMLType.TQ1_0: (256, 54),
    GGMLType.TQ2_0: (256, 66),
    GGMLType.MXFP4: (32, 17),
    GGMLType.NVFP4: (64, 36),
    GGMLType.Q1_0: (128, 18),
    GGMLType.Q2_0: (64, 18),
}


class ValueType(IntEnum):
    """Metadata value types, numbered as `enum gguf_type` in gguf.h."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


@dataclass(frozen=True)
class Value:
    """One metadata value with its exact type, so that a file can be written again bit for bit.

    Attributes:
        type: the type on disk.
        value: int, float, bool or str; for arrays a list of these.
        item_type: the element type of an array, else None.
    """

    type: ValueType
    value: Any
    item_type: ValueType | None = None


def u32(value: int) -> Value:
    """An unsigned 32-bit value, the type of most counts in GGUF metadata."""
    return Value(ValueType.UINT32, value)


def f32(value: float) -> Value:
    """A 32-bit float value."""
    return Value(ValueType.FLOAT32, value)


def boolean(value: bool) -> Value:
    """A boolean value."""
    return Value(ValueType.BOOL, value)


def string(value: str) -> Value:
    """A UTF-8 string value."""
    return Value(ValueType.STRING, value)


def array(item_type: ValueType, items: list[Any]) -> Value:
    """An array of `item_type`."""
    return Value(ValueType.ARRAY, items, item_type)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's entry in the header.

    Attributes:
        name: such as `blk.0.attn_q.weight`.
        shape: row-major as numpy and torch print it (the reverse of ggml's `ne`); rows are the last dimension.
        type: the block type.
        offset: bytes from the start of the data section.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    offset: int = 0

    @property
    def rows(self) -> int:
        """Rows in all: the product of every dimension but the last."""
        return prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, without alignment padding."""
        return self.rows * self.type.row_bytes(self.shape[-1])
