"""What ggml's blocks keep beside their integers, as numbers: steps of a block, codes of its groups; and back.

A weight is step · scale · q + floor step · floor. Layouts are those of the structs in ggml-common.h. How the numbers
are chosen is left to `search`; integers are packed by `quant.codecs.ggml.grid`. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml.grid import GRID_TYPES, write_quants

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[Any]  # uint8; numpy's stubs lose the type at every shift
    Floats = NDArray[np.float32]

# kvalues_iq4nl of ggml-common.h
UNEVEN_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


@dataclass(frozen=True)
class Form:
    """What a type's blocks may hold.

    Attributes:
        group: weights that share a scale.
        lowest: the least q, included.
        highest: the greatest q, included.
        scales: the least and the greatest scale, included; both 0 where scales are halves and their step is 1.
        floors: the greatest floor, included; 0 where floors are halves; None where there are none.
        uneven: whether q is one of `UNEVEN_LEVELS`.
    """

    group: int
    lowest: int
    highest: int
    scales: tuple[int, int] = (0, 0)
    floors: int | None = None
    uneven: bool = False


FORMS = {
    GGMLType.Q8_0: Form(32, -127, 127),  # -128 is never written by ggml; some backends negate what they read
    GGMLType.Q4_0: Form(32, -8, 7),
    GGMLType.Q5_0: Form(32, -16, 15),
    GGMLType.Q4_1: Form(32, 0, 15, floors=0),
    GGMLType.Q5_1: Form(32, 0, 31, floors=0),
    GGMLType.IQ4_NL: Form(32, -127, 113, uneven=True),
    GGMLType.IQ4_XS: Form(32, -127, 113, (-32, 31), uneven=True),
    GGMLType.Q2_K: Form(16, 0, 3, (0, 15), 15),
    GGMLType.Q3_K: Form(16, -4, 3, (-32, 31)),
    GGMLType.Q4_K: Form(32, 0, 15, (0, 63), 63),
    GGMLType.Q5_K: Form(32, 0, 31, (0, 63), 63),
    GGMLType.Q6_K: Form(16, -32, 31, (-128, 127)),
}


@dataclass(frozen=True)
class Scales:
    """Steps of blocks and codes of groups; every array is contiguous.

    Attributes:
        steps: float32 [rows, blocks of a row]: halves, or 1 where scales are halves themselves.
        floor_steps: float32 [rows, blocks of a row]: at most 0, or 1.
        scales: float32 [rows, groups].
        floors: float32 [rows, groups].
    """

    steps: Floats
    floor_steps: Floats
    scales: Floats
    floors: Floats


def read_scales(kind: GGMLType, rows: Bytes) -> Scales:
    """The scales of rows: uint8 [rows, bytes of a row], of a type in `FORMS`."""
    blocks = rows.reshape(-1, kind.block_bytes)
    half_places, scales, floors = _read(kind, blocks)
    per_block = kind.block_size // FORMS[kind].group
    found = []
    for place, sign in zip(half_places, (1, -1), strict=True):
        found.append(np.ones((len(blocks), 1), np.float32) if place is None else sign * _half(blocks, place))
    codes = [np.zeros((len(blocks), per_block), np.float32) if part is None else part for part in (scales, floors)]
    steps, floor_steps, scale, floor = (
        np.ascontiguousarray(part.reshape(len(rows), -1), np.float32) for part in (*found, *codes)
    )
    return Scales(steps, floor_steps, scale, floor)


def write_rows(kind: GGMLType, scales: Scales, quants: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Rows of a type in `FORMS`: uint8 [rows, bytes of a row].

    Args:
        kind: their type.
        scales: of the groups.
        quants: [rows, columns]: q of every weight.
    """
    per_block = kind.block_size // FORMS[kind].group
    step, floor_step = scales.steps.reshape(-1, 1), scales.floor_steps.reshape(-1, 1)
    blocks = np.zeros((len(step), kind.block_bytes), np.uint8)
    _write(kind, blocks, step, -floor_step, scales.scales.reshape(-1, per_block), scales.floors.reshape(-1, per_block))
    rows = blocks.reshape(len(quants), -1)
    if kind in GRID_TYPES:
        return write_quants(kind, rows, quants)
    start = kind.block_bytes - kind.block_size // 2
    index = np.searchsorted(UNEVEN_LEVELS, quants).astype(np.uint8).reshape(len(blocks), -1, 2, 16)
    blocks[:, start:] = (index[:, :, 0] | (index[:, :, 1] << 4)).reshape(len(blocks), -1)
    return rows


def _half(blocks: Bytes, start: int) -> Floats:
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def _put_half(blocks: Bytes, start: int, values: Floats) -> None:
    blocks[:, start : start + 2] = np.ascontiguousarray(values, np.float16).view(np.uint8)


def _read(kind: GGMLType, blocks: Bytes) -> tuple[tuple[int | None, int | None], Any, Any]:
    """Where the halves of steps lie (None for 1), and the codes of scales and floors (None for none)."""
    match kind:
        case GGMLType.Q4_K | GGMLType.Q5_K:
            first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
            scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
            return (0, 2), scales, np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
        case GGMLType.Q2_K:
            return (80, 82), blocks[:, :16] & 15, blocks[:, :16] >> 4
        case GGMLType.Q3_K:
            packed = blocks[:, 96:108]
            low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
            high = np.concatenate([(packed[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1)
            return (108, None), (low | (high << 4)).astype(np.float32) - 32, None
        case GGMLType.Q6_K:
            return (208, None), np.ascontiguousarray(blocks[:, 192:208]).view(np.int8), None
        case GGMLType.IQ4_XS:
            high, low = np.ascontiguousarray(blocks[:, 2:4]).view(np.uint16), blocks[:, 4:8]
            low = np.stack([low & 15, low >> 4], axis=2).reshape(len(blocks), 8)
            return (0, None), (low | (((high >> np.arange(0, 16, 2)) & 3) << 4)).astype(np.float32) - 32, None
        case _:
            return (None, None), _half(blocks, 0), None if FORMS[kind].floors is None else _half(blocks, 2)


def _write(kind: GGMLType, blocks: Bytes, step: Floats, depth: Floats, scales: Floats, floors: Floats) -> None:
    """Everything but the integers; modifies `blocks`. `depth` is what floors are multiples of below zero."""
    whole = scales.astype(np.int32)
    match kind:
        case GGMLType.Q4_K | GGMLType.Q5_K:
            _put_half(blocks, 0, step)
            _put_half(blocks, 2, depth)
            low = floors.astype(np.int32)
            blocks[:, 4:8] = (whole[:, :4] | ((whole[:, 4:] >> 4) << 6)).astype(np.uint8)
            blocks[:, 8:12] = (low[:, :4] | ((low[:, 4:] >> 4) << 6)).astype(np.uint8)
            blocks[:, 12:16] = ((whole[:, 4:] & 15) | ((low[:, 4:] & 15) << 4)).astype(np.uint8)
        case GGMLType.Q2_K:
            _put_half(blocks, 80, step)
            _put_half(blocks, 82, depth)
            blocks[:, :16] = (whole | (floors.astype(np.int32) << 4)).astype(np.uint8)
        case GGMLType.Q3_K:
            _put_half(blocks, 108, step)
            raised = whole + 32
            blocks[:, 96:104] = ((raised[:, :8] & 15) | ((raised[:, 8:] & 15) << 4)).astype(np.uint8)
            high = (raised >> 4).reshape(-1, 4, 4) << np.array([0, 2, 4, 6])[:, None]
            blocks[:, 104:108] = np.bitwise_or.reduce(high, axis=1).astype(np.uint8)
        case GGMLType.Q6_K:
            _put_half(blocks, 208, step)
            blocks[:, 192:208] = whole.astype(np.int8).view(np.uint8)
        case GGMLType.IQ4_XS:
            _put_half(blocks, 0, step)
            raised = whole + 32
            high = np.bitwise_or.reduce((raised >> 4) << np.arange(0, 16, 2), axis=1)
            blocks[:, 2:4] = high.astype(np.uint16)[:, None].view(np.uint8)
            blocks[:, 4:8] = ((raised[:, ::2] & 15) | ((raised[:, 1::2] & 15) << 4)).astype(np.uint8)
        case _:
            _put_half(blocks, 0, scales)
            if FORMS[kind].floors is not None:
                _put_half(blocks, 2, floors)
