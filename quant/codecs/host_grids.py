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
from edgepack.quant.codecs.ggml_grid import write_quants

from edgepack.errors import CodecError, UsageError
from edgepack.gguf.types import GGMLType

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
    """

    kind: GGMLType
    lowest: int
    highest: int
    group: int
    max_multiple: int

    @property
    def reach(self) -> int:
        """The greatest magnitude that fits with either sign."""
        return min(-self.lowest, self.highest)


HOSTS: dict[str, Host] = {
    "q8": Host(GGMLType.Q8_0, -127, 127, 32, 1),
    "q6k": Host(GGMLType.Q6_K, -32, 31, 16, 127),
    "q5k": Host(GGMLType.Q5_K, -16, 15, 32, 63),
    "q4k": Host(GGMLType.Q4_K, -8, 7, 32, 63),
}
HOST_OF_TYPE = {host.kind: host for host in HOSTS.values()}


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
    host: Host, steps: NDArray[np.float16], quants: Integers, multiples: Integers | None = None
) -> NDArray[np.uint8]:
    """Blocks whose weight [r, k] is exactly steps[r] · multiples[k // group] · quants[r, k].

    Args:
        host: the container.
        steps: float16 [rows], positive, normal numbers.
        quants: integers [rows, columns].
        multiples: integers [columns / group], 1 to `host.max_multiple`; all 1 where None.

    Returns:
        uint8 [rows, bytes of a row].

    Raises:
        CodecError: an integer, step or multiple that the host cannot hold, or rows that are not whole blocks.
    """
    rows, columns = quants.shape
    if columns % host.kind.block_size:
        raise CodecError(f"host {host.kind.name}: rows of {columns} are not whole blocks of {host.kind.block_size}")
    factors = np.ones(columns // host.group, np.uint8) if multiples is None else np.asarray(multiples)
    _check(host, steps, quants, factors)
    per_row = columns // host.kind.block_size
    blocks = np.zeros((rows * per_row, host.kind.block_bytes), np.uint8)
    _WRITE_SCALES[host.kind](blocks, np.repeat(steps, per_row), np.tile(factors.astype(np.uint8), rows))
    raised = quants + (-host.lowest if host.lowest in (-16, -8) else 0)  # Q4_K and Q5_K are unsigned
    return write_quants(host.kind, blocks.reshape(rows, -1), raised.astype(np.int8))


def _check(host: Host, steps: NDArray[np.float16], quants: Integers, multiples: Integers) -> None:
    low, high = int(quants.min(initial=0)), int(quants.max(initial=0))
    if low < host.lowest or high > host.highest:
        raise CodecError(
            f"host {host.kind.name}: expected integers from {host.lowest} to {host.highest}, got {low} to {high}"
        )
    largest = float(steps.max(initial=np.float16(1))) * max(1.0, abs(host.lowest) if host.lowest > -32 else 1.0)
    if float(steps.min(initial=np.float16(1))) < _SMALLEST_NORMAL or not largest <= _LARGEST:
        raise CodecError(f"host {host.kind.name}: steps must be normal half-precision numbers, got {steps.min()}")
    if multiples.min(initial=1) < 1 or multiples.max(initial=1) > host.max_multiple:
        raise CodecError(
            f"host {host.kind.name}: expected multiples from 1 to {host.max_multiple}, got {multiples.max()}"
        )


def _put_half(blocks: NDArray[np.uint8], start: int, values: NDArray[np.float16]) -> None:
    blocks[:, start : start + 2] = np.ascontiguousarray(values, "<f2").view(np.uint8).reshape(-1, 2)


def _write_q8_0(blocks: NDArray[np.uint8], steps: NDArray[np.float16], _multiples: NDArray[np.uint8]) -> None:
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


_WRITE_SCALES = {
    GGMLType.Q8_0: _write_q8_0,
    GGMLType.Q6_K: _write_q6_k,
    GGMLType.Q5_K: _write_k4(16),
    GGMLType.Q4_K: _write_k4(8),
}
