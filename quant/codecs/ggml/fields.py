"""The fields of a quantised ggml block, taken apart and put together again: steps, sub-block codes, minima, integers.

Every value is step · code · level[integer] + sign · minimum · minimum code, a field that a type lacks being 1 (or 0 for
the minimum). Which fields to change is left to the caller; `grid` packs integers. Layouts are those of the structs in
ggml-common.h. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CodecError
from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml import unpacked
from edgepack.quant.codecs.ggml.grid import PACKERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Bytes = NDArray[Any]  # uint8; numpy's stubs lose the type at every shift
    Codes = NDArray[np.int16]

# kvalues_iq4nl of ggml-common.h.
_IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Limits:
    """What integers a field may hold, both ends included."""

    lowest: int
    highest: int


@dataclass(frozen=True)
class BlockFormat:
    """How one type keeps its fields; functions work on blocks [n, bytes of a block].

    Attributes:
        kind: the type.
        levels: float32 [count], the value of each integer, ascending.
        step_at: byte at which the float16 step lies.
        group: weights that share a code.
        minimum_at: byte at which the float16 minimum lies; None where there is none.
        minimum_sign: of the minimum in the sum.
        codes: what a code may be; None where there are none.
        minimum_codes: likewise of the minimum's.
    """

    kind: GGMLType
    levels: NDArray[np.float32]
    step_at: int
    group: int
    unpack: Callable[[Bytes], Bytes]
    pack: Callable[[Bytes, NDArray[np.uint8]], None]
    minimum_at: int | None = None
    minimum_sign: int = 1
    codes: Limits | None = None
    minimum_codes: Limits | None = None
    read_codes: Callable[[Bytes], tuple[Codes, Codes | None]] | None = None
    write_codes: Callable[[Bytes, Codes, Codes | None], None] | None = None


@dataclass(frozen=True)
class Fields:
    """The fields of n blocks.

    Attributes:
        step: float16 [n].
        minimum: float16 [n]; None where the type has none.
        codes: int16 [n, groups]; None where the type has none.
        minimum_codes: likewise.
        integers: uint8 [n, weights of a block], indices of levels.
    """

    step: NDArray[np.float16]
    minimum: NDArray[np.float16] | None
    codes: Codes | None
    minimum_codes: Codes | None
    integers: NDArray[np.uint8]


def block_format(kind: GGMLType) -> BlockFormat:
    """The format of `kind`.

    Raises:
        CodecError: its values are no products of a step and a level.
    """
    if kind not in _FORMATS:
        raise CodecError(f"type {kind.name}: its blocks are not steps and integers")
    return _FORMATS[kind]


def read_fields(kind: GGMLType, rows: Bytes) -> Fields:
    """The fields of rows as `quantize_rows` gives them: uint8 [rows, bytes of a row], rows one after the other.

    Raises:
        CodecError: a type without fields, or rows that are not whole blocks.
    """
    integers = block_format(kind).unpack(_blocks(kind, rows)).astype(np.uint8)
    return Fields(*read_steps(kind, rows), integers)


def read_steps(
    kind: GGMLType, rows: Bytes
) -> tuple[NDArray[np.float16], NDArray[np.float16] | None, Codes | None, Codes | None]:
    """All of `Fields` but the integers: step, minimum, codes, minimum codes; raises as `read_fields`."""
    form, blocks = block_format(kind), _blocks(kind, rows)
    codes, minimum_codes = form.read_codes(blocks) if form.read_codes is not None else (None, None)
    minimum = None if form.minimum_at is None else _half(blocks, form.minimum_at)
    return _half(blocks, form.step_at), minimum, codes, minimum_codes


def write_fields(kind: GGMLType, rows: Bytes, fields: Fields) -> Bytes:
    """`rows` with other fields, bits that belong to none as they are; does not modify `rows`.

    Raises:
        CodecError: a number that its field cannot hold; and as `read_fields`.
    """
    _check(block_format(kind), fields)
    return put_fields(kind, rows, fields)


def put_fields(kind: GGMLType, rows: Bytes, fields: Fields) -> Bytes:
    """As `write_fields`, of fields that hold what they may; steps may be infinite, where weights are beyond halves."""
    form, blocks = block_format(kind), _blocks(kind, np.array(rows))
    _put_half(blocks, form.step_at, fields.step)
    if form.minimum_at is not None and fields.minimum is not None:
        _put_half(blocks, form.minimum_at, fields.minimum)
    if form.write_codes is not None and fields.codes is not None:
        form.write_codes(blocks, fields.codes, fields.minimum_codes)
    form.pack(blocks, fields.integers)
    return blocks.reshape(rows.shape)


def _blocks(kind: GGMLType, rows: Bytes) -> Bytes:
    if rows.ndim != 2 or rows.shape[1] % kind.block_bytes:
        raise CodecError(
            f"type {kind.name}: expected rows of whole blocks of {kind.block_bytes} bytes, got {rows.shape}"
        )
    return rows.reshape(-1, kind.block_bytes)


def _check(form: BlockFormat, fields: Fields) -> None:
    steps = [fields.step] if fields.minimum is None else [fields.step, fields.minimum]
    if not all(np.isfinite(each).all() for each in steps):
        raise CodecError(f"type {form.kind.name}: expected finite steps")
    bounded = (
        ("codes", form.codes, fields.codes),
        ("minimum codes", form.minimum_codes, fields.minimum_codes),
        ("integers", Limits(0, len(form.levels) - 1), fields.integers),
    )
    for name, limits, array in bounded:
        if limits is None or array is None:
            continue
        low, high = int(array.min(initial=limits.lowest)), int(array.max(initial=limits.lowest))
        if low < limits.lowest or high > limits.highest:
            raise CodecError(
                f"type {form.kind.name}: expected {name} from {limits.lowest} to {limits.highest}, got {low} to {high}"
            )


def _half(blocks: Bytes, start: int) -> NDArray[np.float16]:
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").reshape(-1)


def _put_half(blocks: Bytes, start: int, values: NDArray[np.float16]) -> None:
    blocks[:, start : start + 2] = np.ascontiguousarray(values, "<f2").view(np.uint8).reshape(-1, 2)


def _uniform(lowest: int, count: int) -> NDArray[np.float32]:
    return np.arange(lowest, lowest + count, dtype=np.float32)


def _read_q2(blocks: Bytes) -> tuple[Codes, Codes]:
    return (blocks[:, :16] & 15).astype(np.int16), (blocks[:, :16] >> 4).astype(np.int16)


def _write_q2(blocks: Bytes, codes: Codes, minima: Codes | None) -> None:
    assert minima is not None
    blocks[:, :16] = (codes | (minima << 4)).astype(np.uint8)


def _read_q3(blocks: Bytes) -> tuple[Codes, None]:
    packed = blocks[:, 96:108]
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    high = np.concatenate([(packed[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1)
    return (low | (high << 4)).astype(np.int16) - np.int16(32), None


def _write_q3(blocks: Bytes, codes: Codes, _minima: Codes | None) -> None:
    raised = (codes + 32).astype(np.uint8)
    blocks[:, 96:104] = (raised[:, :8] & 15) | (raised[:, 8:] & 15) << 4
    high = (raised >> 4).reshape(-1, 4, 4)
    blocks[:, 104:108] = high[:, 0] | high[:, 1] << 2 | high[:, 2] << 4 | high[:, 3] << 6


def _read_k4(blocks: Bytes) -> tuple[Codes, Codes]:
    """get_scale_min_k4 of ggml-quants.c for all eight groups."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
    minimum = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scale.astype(np.int16), minimum.astype(np.int16)


def _write_k4(blocks: Bytes, codes: Codes, minima: Codes | None) -> None:
    assert minima is not None
    scale, minimum = codes.astype(np.uint8), minima.astype(np.uint8)
    blocks[:, 4:8] = scale[:, :4] | (scale[:, 4:] >> 4) << 6
    blocks[:, 8:12] = minimum[:, :4] | (minimum[:, 4:] >> 4) << 6
    blocks[:, 12:16] = (scale[:, 4:] & 15) | (minimum[:, 4:] & 15) << 4


def _read_q6(blocks: Bytes) -> tuple[Codes, None]:
    return np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.int16), None


def _write_q6(blocks: Bytes, codes: Codes, _minima: Codes | None) -> None:
    blocks[:, 192:208] = codes.astype(np.int8).view(np.uint8)


def _read_iq4_xs(blocks: Bytes) -> tuple[Codes, None]:
    high = blocks[:, 2].astype(np.uint16) | blocks[:, 3].astype(np.uint16) << 8
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    top = high[:, None] >> (2 * np.arange(8, dtype=np.uint16)) & 3
    return (low | top << 4).astype(np.int16) - np.int16(32), None


def _write_iq4_xs(blocks: Bytes, codes: Codes, _minima: Codes | None) -> None:
    raised = (codes + 32).astype(np.uint16)
    high = np.bitwise_or.reduce(raised >> 4 << (2 * np.arange(8, dtype=np.uint16)), axis=1)
    blocks[:, 2], blocks[:, 3] = high & 255, high >> 8
    low = (raised & 15).reshape(-1, 4, 2)
    blocks[:, 4:8] = low[:, :, 0] | low[:, :, 1] << 4


_IQ4 = np.array(_IQ4_LEVELS, np.float32)
_SIX = Limits(0, 63)
_K4 = BlockFormat(
    GGMLType.Q4_K, _uniform(0, 16), 0, 32, unpacked.q4_k, PACKERS[GGMLType.Q4_K], 2, -1, _SIX, _SIX, _read_k4, _write_k4
)
_Q4 = BlockFormat(GGMLType.Q4_0, _uniform(-8, 16), 0, 32, unpacked.halves(2), PACKERS[GGMLType.Q4_0])
_FORMATS: dict[GGMLType, BlockFormat] = {
    form.kind: form
    for form in (
        _Q4,
        replace(_Q4, kind=GGMLType.IQ4_NL, levels=_IQ4),
        BlockFormat(GGMLType.Q4_1, _uniform(0, 16), 0, 32, unpacked.halves(4), PACKERS[GGMLType.Q4_1], 2),
        BlockFormat(GGMLType.Q5_0, _uniform(-16, 32), 0, 32, unpacked.q5(2), PACKERS[GGMLType.Q5_0]),
        BlockFormat(GGMLType.Q5_1, _uniform(0, 32), 0, 32, unpacked.q5(4), PACKERS[GGMLType.Q5_1], 2),
        BlockFormat(GGMLType.Q8_0, _uniform(-128, 256), 0, 32, unpacked.q8, PACKERS[GGMLType.Q8_0]),
        _K4,
        replace(
            _K4, kind=GGMLType.Q5_K, levels=_uniform(0, 32), unpack=unpacked.q5_k, pack=PACKERS[GGMLType.Q5_K]
        ),
        BlockFormat(
            GGMLType.Q2_K, _uniform(0, 4), 80, 16, unpacked.q2_k, PACKERS[GGMLType.Q2_K], 82, -1,
            Limits(0, 15), Limits(0, 15), _read_q2, _write_q2,
        ),
        BlockFormat(
            GGMLType.Q3_K, _uniform(-4, 8), 108, 16, unpacked.q3_k, PACKERS[GGMLType.Q3_K],
            codes=Limits(-32, 31), read_codes=_read_q3, write_codes=_write_q3,
        ),
        BlockFormat(
            GGMLType.Q6_K, _uniform(-32, 64), 208, 16, unpacked.q6_k, PACKERS[GGMLType.Q6_K],
            codes=Limits(-128, 127), read_codes=_read_q6, write_codes=_write_q6,
        ),
        BlockFormat(
            GGMLType.IQ4_XS, _IQ4, 0, 32, unpacked.iq4_xs, unpacked.pack_iq4_xs,
            codes=Limits(-32, 31), read_codes=_read_iq4_xs, write_codes=_write_iq4_xs,
        ),
    )
}  # fmt: skip
FIELD_TYPES = frozenset(_FORMATS)
