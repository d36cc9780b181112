"""Integers that follow a trellis code as indices and quantisers: what the state says is not coded twice.

A state has one of two quantisers; of the integers that it allows the index alone goes to the coder, in a table for
the quantiser. Which path is best was decided when the weights were rounded; probabilities and bytes are left to
`grid_coder`, loops to the kernel `grid_symbols`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.kernels.native import library, pointer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.trellis import TrellisCode

    Integers = NDArray[np.signedinteger[Any]]


def transitions(code: TrellisCode) -> NDArray[np.uint8]:
    """The state that follows, uint8 [2, states], after an index with lowest bit 0 or 1."""
    states, taps = np.arange(code.states), np.array(code.taps)
    return np.stack([(2 * states + (bit ^ taps)) % code.states for bit in (0, 1)]).astype(np.uint8)


@lru_cache(32)
def trellis_fields(code: TrellisCode | None) -> dict[str, int]:
    """A code as kernels read it: quantisers and taps are parities of masked states (`edgepack.trellis`)."""
    if code is None:
        return {"states": 1, "path_rows": 1, "quantiser_mask": 0, "tap_mask": 0}
    bits = [1 << place for place in range(code.states.bit_length() - 1)]
    masks = (sum(bit for bit in bits if of_state[bit]) for of_state in (code.quantisers, code.taps))
    quantiser_mask, tap_mask = masks
    return {"states": code.states, "path_rows": code.rows, "quantiser_mask": quantiser_mask, "tap_mask": tap_mask}


def quantisers(code: TrellisCode) -> NDArray[np.uint8]:
    """The quantiser of each state, uint8 [states]."""
    return np.array(code.quantisers, np.uint8)


def indices_of(integers: NDArray[np.int64], chosen: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The index k of integers n = 2k + q, for quantisers q."""
    return (integers - chosen) >> 1


def integers_of(indices: NDArray[np.int64], chosen: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The inverse of `indices_of`."""
    return 2 * indices + chosen


def starts(code: TrellisCode, columns: int) -> NDArray[np.uint8]:
    """The state in which a path begins, for each column."""
    return (np.arange(columns) % code.states).astype(np.uint8)


@dataclass(frozen=True)
class _Followed:
    """What came of following paths: quantisers and indices [rows, columns]; keeps [columns], 1 where all is allowed."""

    quantisers: NDArray[np.uint8]
    indices: NDArray[np.int16]
    keeps: NDArray[np.bool_]


def _follow(
    integers: NDArray[np.int16],
    divisors: NDArray[np.int16],
    aside: NDArray[np.uint8],
    first: NDArray[np.uint8],
    code: TrellisCode,
) -> _Followed:
    """Follow the paths of integers [rows, columns] over divisors [columns], which divide them."""
    (rows, columns), room = integers.shape, np.empty(integers.shape[1], np.uint8)
    if divisors.shape != (columns,) or first.shape != (columns,) or aside.shape != (rows,) or (divisors < 1).any():
        raise ValueError(f"expected {columns} divisors and states, {rows} rows, got {divisors.shape}, {aside.shape}")
    found = _Followed(np.empty(integers.shape, np.uint8), np.empty(integers.shape, np.int16), np.empty(columns, bool))
    read = (integers, "const int16_t *"), (divisors, "const int16_t *"), (aside, "const uint8_t *")
    values, over, apart = (pointer(array, kind) for array, kind in read)
    fields = trellis_fields(code)
    library().edgepack_trellis_follow(
        values, rows, columns, over, apart, pointer(first, "const uint8_t *"), code.rows,
        fields["quantiser_mask"], fields["tap_mask"], code.states - 1, pointer(room, "uint8_t *"),
        pointer(found.quantisers, "uint8_t *"), pointer(found.indices, "int16_t *"), pointer(found.keeps, "uint8_t *"),
    )  # fmt: skip
    return found


def follow(
    integers: Integers, aside: NDArray[np.bool_], starts: NDArray[np.uint8], code: TrellisCode
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Quantisers along the columns of [rows, columns], and whether each column [columns] keeps to the code.

    Args:
        integers: without multiples, each of at most 15 bits and a sign.
        aside: bool [rows], rows that stand aside.
        starts: uint8 [columns], where their paths begin; each less than the code's states.
        code: the code.
    """
    ones = np.ones(integers.shape[1], np.int16)
    found = _follow(_int16(integers), ones, aside.astype(np.uint8), np.ascontiguousarray(starts), code)
    return found.quantisers, found.keeps


def _int16(integers: Integers) -> NDArray[np.int16]:
    return np.ascontiguousarray(integers, np.int16)


@dataclass(frozen=True)
class TrellisSymbols:
    """A matrix [rows, columns] of integers that follow a code.

    Attributes:
        indices: int16 [rows, columns].
        quantisers: uint8 [rows, columns].
        multiples: int16 [columns].
        aside: bool [rows], rows that stand aside.
    """

    indices: NDArray[np.int16]
    quantisers: NDArray[np.uint8]
    multiples: NDArray[np.int16]
    aside: NDArray[np.bool_]


def as_indices(integers: Integers, multiples: Integers, code: TrellisCode) -> TrellisSymbols | None:
    """Recognise integers that follow the code.

    Args:
        integers: [rows, columns], multiples included, each of at most 15 bits and a sign.
        multiples: the greatest common divisor of each column; a divisor of it may be what the code wants.
        code: the code.

    Returns:
        None where a column follows the code with no divisor.
    """
    values, whole = _int16(integers), _int16(multiples)
    first, aside = starts(code, len(whole)), _stand_aside(values, whole)
    found, chosen = _follow(values, whole, aside, first, code), whole.copy()
    open_columns = np.flatnonzero(~found.keeps)
    while len(open_columns):
        if (chosen[open_columns] == 1).any():
            return None
        pairs = zip(whole[open_columns], chosen[open_columns], strict=True)
        chosen[open_columns] = [_next_divisor(int(all_), int(now)) for all_, now in pairs]
        tried = _follow(_int16(values[:, open_columns]), chosen[open_columns], aside, first[open_columns], code)
        kept = open_columns[tried.keeps]
        found.quantisers[:, kept], found.indices[:, kept] = (
            tried.quantisers[:, tried.keeps],
            tried.indices[:, tried.keeps],
        )
        open_columns = open_columns[~tried.keeps]
    return TrellisSymbols(found.indices, found.quantisers, chosen, aside.astype(bool))


def _stand_aside(integers: NDArray[np.int16], multiples: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Rows without an odd integer, uint8 [rows]: a row of paths is odd in every other column.

    A column whose divisor is even by chance would call a row odd that is not, so it is asked only if all are even.
    """
    asked = (multiples & 1).astype(np.uint8)
    if not asked.any():
        integers, asked = integers // multiples, np.ones(len(multiples), np.uint8)
    aside = np.empty(len(integers), np.uint8)
    library().edgepack_grid_aside(
        pointer(integers, "const int16_t *"), *integers.shape, pointer(asked, "const uint8_t *"),
        pointer(aside, "uint8_t *"),
    )  # fmt: skip
    return aside


def _next_divisor(number: int, below: int) -> int:
    """The greatest divisor of `number` that is less than `below`, which is above 1."""
    return next(divisor for divisor in range(below - 1, 0, -1) if number % divisor == 0)
