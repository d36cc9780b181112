"""What ggml's blocks keep beside their integers, as numbers: steps of a block, codes of its groups; and back.

A weight is step · scale · q + floor step · floor. Layouts are those of the structs in ggml-common.h. How the numbers
are chosen is left to `search`; blocks are taken apart by `quant.codecs.ggml.fields`. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml.fields import Fields, block_format, put_fields, read_fields, read_steps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[Any]  # uint8; numpy's stubs lose the type at every shift
    Floats = NDArray[np.float32]

UNEVEN_LEVELS = block_format(GGMLType.IQ4_NL).levels.astype(np.int8)


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
        grains: where the bits of an archive count, scales and floors are multiples of these: steps at most some 3 %
            off, and floors within a step of q, of which an archive needs few bits; 1 for halves.
    """

    group: int
    lowest: int
    highest: int
    scales: tuple[int, int] = (0, 0)
    floors: int | None = None
    uneven: bool = False
    grains: tuple[int, int] = (1, 1)

    @property
    def zero(self) -> int:
        """The q that the archive's coder takes for the middle."""
        return (self.highest + 1) // 2 if self.floors is not None else 0

    @property
    def code_bounds(self) -> tuple[tuple[int, int], int]:
        """As `scales` and `floors`, of multiples of `grains`."""
        (low, high), (of_scales, of_floors) = self.scales, self.grains
        return (-(-low // of_scales) * of_scales, high // of_scales * of_scales), (
            (self.floors or 0) // of_floors * of_floors
        )


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
    GGMLType.Q4_K: Form(32, 0, 15, (0, 63), 63, grains=(1, 2)),
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
    step, minimum, codes, minimum_codes = read_steps(kind, rows)
    depth = None if minimum is None else np.float32(block_format(kind).minimum_sign) * minimum.astype(np.float32)
    parts = (None, None, step, depth) if codes is None else (step, depth, codes, minimum_codes)
    groups = rows.shape[1] // kind.block_bytes * (kind.block_size // FORMS[kind].group)
    shapes = (rows.shape[1] // kind.block_bytes,) * 2 + (groups,) * 2
    found = [
        np.full((len(rows), count), missing, np.float32) if part is None
        else np.ascontiguousarray(part.reshape(len(rows), -1), np.float32)
        for part, count, missing in zip(parts, shapes, (1, 1, 0, 0), strict=True)
    ]  # fmt: skip
    return Scales(*found)


def read_quants(kind: GGMLType, rows: Bytes, columns: int) -> NDArray[np.int8]:
    """Q of every weight of rows, int8 [rows, columns]: the inverse of `write_rows`."""
    integers = read_fields(kind, rows).integers.reshape(len(rows), columns)
    return np.asarray(block_format(kind).levels[integers].astype(np.int8))


def write_rows(kind: GGMLType, scales: Scales, quants: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Rows of a type in `FORMS`: uint8 [rows, bytes of a row].

    Args:
        kind: their type.
        scales: of the groups.
        quants: [rows, columns]: q of every weight.
    """
    form, blocks = block_format(kind), len(quants) * quants.shape[1] // kind.block_size
    steps, depths = (scales.scales, scales.floors) if form.codes is None else (scales.steps, scales.floor_steps)
    codes, minima = (
        None if form.codes is None else part.reshape(blocks, -1).astype(np.int16)
        for part in (scales.scales, scales.floors)
    )
    minimum = None if form.minimum_at is None else (form.minimum_sign * depths.reshape(-1)).astype(np.float16)
    integers = np.searchsorted(form.levels, quants).astype(np.uint8).reshape(blocks, kind.block_size)
    blank = np.zeros((len(quants), kind.row_bytes(quants.shape[1])), np.uint8)
    fields = Fields(steps.reshape(-1).astype(np.float16), minimum, codes, minima, integers)
    return np.asarray(put_fields(kind, blank, fields))
