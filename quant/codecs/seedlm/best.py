"""The best seed of each block so far, and how pairs of block and seed improve it. Publisher only.

Which pairs are worth measuring is left to `search` and `pruned`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from edgepack.quant.codecs.seedlm.rounding import least_errors
from edgepack.quant.codecs.torch_threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepack.quant.codecs.seedlm.basis import Basis

_INFINITE = 0x7F800000  # the bits of float32's infinity


class Best:
    """The best of what has been measured so far, by block; improved in place.

    Error and seed lie in one integer, the error's bits above the seed's: floats that are not negative are ordered
    as their bits are, so the least integer is the least error, and the lowest seed among equals.
    """

    def __init__(self, keys: torch.Tensor) -> None:
        self._keys = keys

    @classmethod
    def nothing(cls, blocks: int, device: torch.device) -> Best:
        """Nothing is measured yet: every error is infinite."""
        return cls(torch.full((blocks,), _INFINITE << 32, dtype=torch.int64, device=device))

    def part(self, blocks: slice) -> Best:
        """Some of the blocks; what improves them improves these."""
        return Best(self._keys[blocks])

    def put(self, blocks: torch.Tensor, other: Best) -> None:
        """Take what `other` knows of `blocks` (indices)."""
        self._keys[blocks] = other._keys

    def offer(self, block: torch.Tensor, seed: torch.Tensor, error: torch.Tensor) -> None:
        """Pairs of block and seed (indices) with their errors, float32."""
        self._keys.scatter_reduce_(0, block, (error.view(torch.int32).long() << 32) | seed, "amin")

    @property
    def error(self) -> torch.Tensor:
        """Float32 [blocks]; infinity where nothing was measured."""
        return (self._keys >> 32).int().view(torch.float32)

    @property
    def seed(self) -> torch.Tensor:
        """Index into the basis, int64 [blocks]."""
        return self._keys & 0xFFFFFFFF


@contextmanager
def tile_workers(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Threads that take a tile each, with torch's own threading off: small operations need no barriers."""
    with one_thread() as threads, ThreadPoolExecutor(threads if device.type == "cpu" else 1) as workers:
        yield workers


def improve(
    x: torch.Tensor,
    basis: Basis,
    block: torch.Tensor,
    seed: torch.Tensor,
    best: Best,
    roots: torch.Tensor | None = None,
) -> None:
    """Measure pairs of block and seed (indices), and keep what is better; ties keep the lower seed.

    Args:
        x: blocks, float32 [blocks, C], times `roots`.
        basis: of the seeds.
        block: of each pair.
        seed: of each pair.
        best: improved.
        roots: of the weights of every block's columns [blocks, C], which `basis` does not know of; None where it does.
    """
    known = seed < len(basis.seeds)
    block, seed = block[known], seed[known]
    if len(block):
        own = basis.of(seed, None if roots is None else roots.index_select(0, block))
        best.offer(block, seed, least_errors(x.index_select(0, block), own, basis.coefficients))
