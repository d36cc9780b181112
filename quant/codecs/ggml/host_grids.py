"""Uniform grids inside ggml's block types: integers in, blocks out that ggml's own code reads back exactly.

A host is a block type used as a container: one step a row, one small integer multiple a group of columns, and the
integers. Which integers and steps, and what they cost in an archive, is left to `edgepack.quant.wire`. numpy only.

Exact because every product has fewer significant bits than float32's 24: a half-precision step has 11, a multiple at
most 7, an integer at most 8. Q4_K and Q5_K are unsigned with a minimum; with dmin = d · 2^(b-1) the minimum of a
group is d · multiple · 2^(b-1), so their difference is exact for every half-precision d, not only for powers of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CodecError, UsageError
from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml.grid import write_quants

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Integers = NDArray[np.integer[Any]]

_SMALLEST_NORMAL = 2.0**-14  # of float16; below, steps would lose significant bits
_LARGEST = 65504.0


@dataclass(frozen=True)
class Host:
    """A block type as a container for integers.

    Attributes:
        kind: the ggml type.
        lowest, highest: the integers that it holds, both included.
        group: columns that share one multiple.
        max_multiple: the greatest multiple of the row's step that a group may have.
        grouped: whether the block has integers for the multiples; else its own half-precision step holds their product
            with the row's.
    """

    kind: GGMLType
    lowest: int
    highest: int
    group: int
    max_multiple: int
    grouped: bool = True

    @property
    def reach(self) -> int:
        """The greatest magnitude that fits with either sign."""
        return min(-self.lowest, self.highest)


HOSTS: dict[str, Host] = {
    "q8": Host(GGMLType.Q8_0, -127, 127, 32, 2048, grouped=False),
    "q6k": Host(GGMLType.Q6_K, -32, 31, 16, 127),
    "q5k": Host(GGMLType.Q5_K, -16, 15, 32, 63),
    "q4k": Host(GGMLType.Q4_K, -8, 7, 32, 63),
}
# What llama.cpp falls back to for rows that are not whole blocks (`quant.type_choice.fallback`).
_FALLBACKS = (
    Host(GGMLType.Q5_0, -16, 15, 32, 2048, grouped=False),
    Host(GGMLType.Q4_0, -8, 7, 32, 2048, grouped=False),
    Host(GGMLType.Q5_1, -16, 15, 32, 2048, grouped=False),
    Host(GGMLType.F16, -127, 127, 1, 256, grouped=False),
)
HOST_OF_TYPE = {host.kind: host for host in (*HOSTS.values(), *_FALLBACKS)}
F16_STEP_BITS = 4  # significant bits of a step hosted in F16: with integers of 7 bits products have 11, and are exact


def find_host(text: str) -> Host:
    """The host called `q8`, `q6k`, `q5k` or `q4k`; ggml's own spellings are understood too.

    Raises:
        UsageError: unknown; the text lists the known ones.
    """
    key = text.lower().replace("_", "")
    host = HOSTS.get("q8" if key == "q80" else key)
    if host is None:
        raise UsageError(f"unknown host '{text}': expected one of {', '.join(HOSTS)}")
    return host


def encode_host(
    host: Host, steps: NDArray[np.floating[Any]], quants: Integers, multiples: Integers | None = None
) -> NDArray[np.uint8]:
    """Blocks whose weight [r, k] is exactly steps[r] · multiples[r, k // group] · quants[r, k].

    Args:
        host: the container.
        steps: [rows], positive; where the host is `grouped`, and else times their multiples, normal float16 numbers.
        quants: integers [rows, columns].
        multiples: integers [rows or 1, columns / group], 1 to `host.max_multiple`; all 1 where None.

    Returns:
        uint8 [rows, bytes of a row].

    Raises:
        CodecError: an integer, step or multiple that the host cannot hold, or rows that are not whole blocks.
    """
    rows, columns = quants.shape
    if columns % host.kind.block_size:
        raise CodecError(f"host {host.kind.name}: rows of {columns} are not whole blocks of {host.kind.block_size}")
    groups = columns // host.group
    factors = np.broadcast_to(np.uint16(1) if multiples is None else np.asarray(multiples), (rows, groups))
    _check(host, steps, quants, factors)
    if host.kind is GGMLType.F16:
        return _exact_halves(steps, quants * factors).view(np.uint8)
    blocks = np.zeros((rows * columns // host.kind.block_size, host.kind.block_bytes), np.uint8)
    if host.grouped:
        halves = steps.astype(np.float16)
        _WRITE_SCALES[host.kind](blocks, np.repeat(halves, len(blocks) // rows), factors.astype(np.uint8))
    else:
        _WRITE_STEPS[host.kind](blocks, _exact_halves(steps, factors).reshape(-1))
    raised = quants + (-host.lowest if host.kind in _UNSIGNED else 0)
    return write_quants(host.kind, blocks.reshape(rows, -1), raised.astype(np.int8))


def _exact_halves(steps: NDArray[np.floating[Any]], factors: Integers) -> NDArray[np.float16]:
    exact = steps.astype(np.float32)[:, None] * factors
    halves = exact.astype(np.float16)
    if not np.array_equal(halves.astype(np.float32), exact):
        raise CodecError("host: steps have too many significant bits for half-precision products with their multiples")
    return halves


def _check(host: Host, steps: NDArray[np.floating[Any]], quants: Integers, multiples: Integers) -> None:
    low, high = int(quants.min(initial=0)), int(quants.max(initial=0))
    if low < host.lowest or high > host.highest:
        raise CodecError(
            f"host {host.kind.name}: expected integers from {host.lowest} to {host.highest}, got {low} to {high}"
        )
    most = int(multiples.max(initial=1))
    if multiples.min(initial=1) < 1 or most > host.max_multiple:
        raise CodecError(f"host {host.kind.name}: expected multiples from 1 to {host.max_multiple}, got {most}")
    if host.kind is GGMLType.F16:
        smallest, largest = float(steps.min(initial=1)), float(steps.max(initial=1)) * most
    elif host.grouped:
        smallest, largest = float(steps.min(initial=1)), float(steps.max(initial=1)) * -host.lowest
    else:
        products = steps.astype(np.float64)[:, None] * multiples
        smallest, largest = float(products.min(initial=1)), float(products.max(initial=1))
        largest *= -host.lowest if host.kind in _UNSIGNED else 1
    if not (smallest >= _SMALLEST_NORMAL and largest <= _LARGEST):
        raise CodecError(f"host {host.kind.name}: steps must be normal half-precision numbers, got {steps.min()}")


def _put_half(blocks: NDArray[np.uint8], start: int, values: NDArray[np.float16]) -> None:
    blocks[:, start : start + 2] = np.ascontiguousarray(values, "<f2").view(np.uint8).reshape(-1, 2)


def _write_step(blocks: NDArray[np.uint8], steps: NDArray[np.float16]) -> None:
    _put_half(blocks, 0, steps)


def _write_q6_k(blocks: NDArray[np.uint8], steps: NDArray[np.float16], multiples: NDArray[np.uint8]) -> None:
    blocks[:, 192:208] = multiples.reshape(-1, 16)
    _put_half(blocks, 208, steps)


def _write_k4(half_range: int) -> Callable[[NDArray[np.uint8], NDArray[np.float16], NDArray[np.uint8]], None]:
    """Eight 6-bit scales and minima (the inverse of get_scale_min_k4), here equal; dmin = d · half_range."""

    def write(blocks: NDArray[np.uint8], steps: NDArray[np.float16], multiples: NDArray[np.uint8]) -> None:
        _put_half(blocks, 0, steps)
        _put_half(blocks, 2, (steps.astype(np.float32) * half_range).astype(np.float16))
        factors = multiples.reshape(-1, 8)
        first, second = factors[:, :4], factors[:, 4:]
        blocks[:, 4:8] = blocks[:, 8:12] = first | (second >> 4 << 6)
        blocks[:, 12:16] = (second & 15) | (second & 15) << 4

    return write


def _write_step_and_minimum(blocks: NDArray[np.uint8], steps: NDArray[np.float16]) -> None:
    _put_half(blocks, 0, steps)
    _put_half(blocks, 2, (steps.astype(np.float32) * -16).astype(np.float16))


_UNSIGNED = (GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q5_1)
_WRITE_STEPS = {
    GGMLType.Q8_0: _write_step,
    GGMLType.Q5_0: _write_step,
    GGMLType.Q4_0: _write_step,
    GGMLType.Q5_1: _write_step_and_minimum,
}
_WRITE_SCALES = {
    GGMLType.Q6_K: _write_q6_k,
    GGMLType.Q5_K: _write_k4(16),
    GGMLType.Q4_K: _write_k4(8),
}
