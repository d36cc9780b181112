"""Finds the seeds of SeedLM: every seed for every block, as one big blocked matrix product. Publisher only.

Storage and decoding are left to `codec`, bounds to `basis`, a search of some seeds to `pruned`. This one is exact: one
matrix product bounds all pairs of block and seed, and only the few seeds whose bound is below the block's best error so
far (about 20 of 65535) are rounded and measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.quant.codecs.seedlm.basis import GROUP, Basis, outer_products, seed_basis
from edgepack.quant.codecs.seedlm.best import Best, improve, tile_workers
from edgepack.quant.codecs.seedlm.found import Found, pack_coefficients
from edgepack.quant.codecs.seedlm.pruned import search_pruned
from edgepack.quant.codecs.seedlm.rounding import quantise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgepack.quant.codecs.seedlm.codec import SeedLM

# Tiles of the product: 1024 blocks × 1024 seeds are 4 MiB of scores, which stay in the caches of two cores.
_BLOCK_TILE = 1024
_SEED_TILE = 1024
# Rounding of the float32 product, relative to ‖x‖² = 1: bounds are loosened by this much, so that none is missed.
SLACK = 4e-6
_BLOCK_TILE_ACCELERATOR = 16384
_NO_EXPONENT = np.iinfo(np.int16).min
# Seeds below which every one is tried, whatever was asked for.
_FEWEST_PRUNED = 4096
# Largest root of a block's columns' weights beside the least, up to which likely seeds are looked for without weights:
# where it was larger, as in most of a real model's first queries, the error was half as large again.
_EVEN = 10.0


def search_seeds(
    weight: NDArray[np.float32],
    codec: SeedLM,
    column_weights: NDArray[np.float64] | None,
    columns: int = 1,
    first: int = 0,
) -> Found:
    """Best seed, exponent and coefficients of every block of a run of a matrix's weights.

    Args:
        weight: float32 [n] in row-major order, cut into blocks; the last block is padded with zeros.
        codec: gives C, P, K, the kind of search and the device.
        column_weights: [columns], weighs squared residuals; None for all equal.
        columns: of the matrix.
        first: place of the run's first weight in the matrix.
    """
    if column_weights is None:
        return search_together([weight], codec)[0]
    blocks, scale = _scaled_blocks(weight, codec.block)
    x = torch.from_numpy(blocks).to(codec.device)
    best = _Chosen.nothing(len(blocks), codec)
    starts = (first + np.arange(len(blocks), dtype=np.int64) * codec.block) % columns
    basis = seed_basis(codec.block, codec.coefficients, codec.register_bits, codec.device)
    left = np.arange(len(blocks))
    if _tries_some(codec, basis):
        roots = _roots(starts, codec.block, column_weights)
        is_even = roots.max(1) <= _EVEN * roots.min(1)
        left = np.flatnonzero(~is_even)
        _search_even(x, np.flatnonzero(is_even), roots, basis, best)
    _search_by_columns(x, left, starts, column_weights, codec, best)
    return best.finished(scale)


def _tries_some(codec: SeedLM, basis: Basis) -> bool:
    """Whether a block tries only those seeds that suit its direction."""
    return codec.search == "pruned" and len(basis.seeds) >= _FEWEST_PRUNED


def _search_even(
    x: torch.Tensor, members: NDArray[np.int64], roots: NDArray[np.float32], basis: Basis, best: _Chosen
) -> None:
    """The seeds that suit a block's direction, for the blocks `members`; measured with `roots` of all blocks."""
    if not len(members):
        return
    chosen, own = torch.from_numpy(members).to(x.device), torch.from_numpy(roots[members]).to(x.device)
    local, found = x[chosen], Best.nothing(len(members), x.device)
    search_pruned(local, basis, found, own)
    best.put(chosen, local * own, basis, found, own)


def _search_by_columns(
    x: torch.Tensor,
    members: NDArray[np.int64],
    starts: NDArray[np.int64],
    column_weights: NDArray[np.float64],
    codec: SeedLM,
    best: _Chosen,
) -> None:
    """Every seed for the blocks `members`, those over the same columns together: they share weighted seeds' bounds."""
    for start in np.unique(starts[members]):
        root = torch.from_numpy(_roots(np.array([start]), codec.block, column_weights)[0])
        basis = seed_basis(codec.block, codec.coefficients, codec.register_bits, codec.device, root.numpy())
        chosen = torch.from_numpy(members[starts[members] == start]).to(codec.device)
        local = x[chosen] * root.to(codec.device)
        found = Best.nothing(len(chosen), x.device)
        search_exhaustive(local, basis, found)
        best.put(chosen, local, basis, found)


def search_together(weights: Sequence[NDArray[np.float32]], codec: SeedLM) -> list[Found]:
    """As `search_seeds` for several matrices whose columns all weigh the same.

    The pruned search finds more blocks of each direction in several matrices than in one, and is faster for it.
    """
    parts = [_scaled_blocks(weight, codec.block) for weight in weights]
    x = torch.from_numpy(np.concatenate([blocks for blocks, _ in parts])).to(codec.device)
    basis = seed_basis(codec.block, codec.coefficients, codec.register_bits, codec.device)
    found = Best.nothing(len(x), x.device)
    (search_pruned if _tries_some(codec, basis) else search_exhaustive)(x, basis, found)
    best = _Chosen.nothing(len(x), codec)
    best.put(torch.arange(len(x), device=x.device), x, basis, found)
    ends = np.cumsum([len(blocks) for blocks, _ in parts]).tolist()
    return [
        best.part(slice(end - len(scale), end)).finished(scale) for end, (_, scale) in zip(ends, parts, strict=True)
    ]


@dataclass(frozen=True)
class _Chosen:
    """Seed (1 … 2^K - 1), exponent (both int64 [blocks]) and coefficients (float32 [blocks, P]) of every block."""

    seed: torch.Tensor
    exponent: torch.Tensor
    coefficients: torch.Tensor

    @classmethod
    def nothing(cls, count: int, codec: SeedLM) -> _Chosen:
        """Coefficients 0 at seed 1, which leave the whole block as error."""
        ones = torch.ones(count, dtype=torch.int64, device=codec.device)
        return cls(ones, torch.full_like(ones, -(10**6)), torch.zeros(count, codec.coefficients, device=codec.device))

    def put(
        self, chosen: torch.Tensor, x: torch.Tensor, basis: Basis, found: Best, roots: torch.Tensor | None = None
    ) -> None:
        """Round the coefficients of blocks `chosen` (indices), whose weights are `x`, at the seeds that were found.

        With `roots` [blocks, C] of their columns' weights where `basis` does not know of them.
        """
        if not len(basis.seeds):
            return
        seed = found.seed
        exponent, coefficients = quantise(x, basis.of(seed, roots), basis.coefficients)
        self.seed[chosen] = basis.seeds[seed]
        self.exponent[chosen] = exponent
        self.coefficients[chosen] = coefficients

    def part(self, blocks: slice) -> _Chosen:
        """Some of the blocks."""
        return _Chosen(self.seed[blocks], self.exponent[blocks], self.coefficients[blocks])

    def finished(self, scale: NDArray[np.int32]) -> Found:
        """With exponents of the unscaled blocks: those less `scale`."""
        coefficients = self.coefficients.cpu().numpy().astype(np.int8)
        exponents = np.where(coefficients.any(axis=1), self.exponent.cpu().numpy() + scale, _NO_EXPONENT)
        seeds = self.seed.cpu().numpy().astype(np.uint16)
        return Found(seeds, exponents.astype(np.int16), pack_coefficients(coefficients))


def _scaled_blocks(weight: NDArray[np.float32], block: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Blocks times 2^-m with norms in [½, 1) (zero blocks stay zero), and the m."""
    blocks = np.zeros((-(-weight.size // block), block), dtype=np.float32)
    blocks.reshape(-1)[: weight.size] = weight.reshape(-1)
    norms = np.sqrt(np.einsum("ij,ij->i", blocks, blocks, dtype=np.float64))
    _, scale = np.frexp(norms)
    return np.ldexp(blocks, -scale[:, None]).astype(np.float32), scale.astype(np.int32)


def _roots(starts: NDArray[np.int64], block: int, column_weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """Roots of the weights of the columns under each block, mean square 1: [blocks, C].

    Args:
        starts: columns of the blocks' first weights.
        block: C.
        column_weights: [columns].
    """
    weights = column_weights[(starts[:, None] + np.arange(block)) % len(column_weights)]
    # A floor keeps U(s) of full rank where some columns are never active.
    weights = np.maximum(weights, 1e-4 * np.maximum(weights.max(1, keepdims=True), 1e-12))
    roots: NDArray[np.float32] = np.sqrt(weights / weights.mean(1, keepdims=True)).astype(np.float32)
    return roots


def search_exhaustive(x: torch.Tensor, basis: Basis, best: Best) -> None:
    """Improve `best` until no seed has a smaller error. `x`: float32 [blocks, C], norms at most about 1."""
    tile = _BLOCK_TILE if x.device.type == "cpu" else _BLOCK_TILE_ACCELERATOR

    def search(start: int) -> None:
        part = slice(start, start + tile)
        _search_tile(x[part], basis, best.part(part))

    with tile_workers(x.device) as workers:
        list(workers.map(search, range(0, len(x), tile)))


def _search_tile(x: torch.Tensor, basis: Basis, best: Best) -> None:
    products = outer_products(x)
    norms = (x * x).sum(-1)
    scores = torch.empty(0, device=x.device)
    waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
    for first in range(0, basis.bounds.shape[1], _SEED_TILE):
        bounds = basis.bounds[:, first : first + _SEED_TILE]
        if scores.shape != (len(x), bounds.shape[1]):
            scores = torch.empty(len(x), bounds.shape[1], device=x.device)
        torch.mm(products, bounds, out=scores)
        peaks = group_peaks(scores)
        if first == 0:
            everywhere = torch.arange(len(x), device=x.device)
            improve(x, basis, everywhere, highest(scores, peaks), best)
        block, seed = above(scores, peaks, norms - best.error - SLACK)
        waiting.append((block, first + seed))
        if sum(len(block) for block, _seed in waiting) > 2 * len(x):
            _improve_waiting(x, basis, waiting, best)
    _improve_waiting(x, basis, waiting, best)


def _improve_waiting(
    x: torch.Tensor, basis: Basis, waiting: list[tuple[torch.Tensor, torch.Tensor]], best: Best
) -> None:
    """Measure the pairs of several tiles together: one call of many small operations instead of one a tile."""
    if waiting:
        improve(x, basis, torch.cat([block for block, _ in waiting]), torch.cat([seed for _, seed in waiting]), best)
        waiting.clear()


def group_peaks(scores: torch.Tensor) -> torch.Tensor:
    """Highest score of each group: columns g, g + G, g + 2G … of `GROUP`·G are group g. [blocks, G]."""
    return scores.view(len(scores), GROUP, -1).amax(1)


def highest(scores: torch.Tensor, peaks: torch.Tensor) -> torch.Tensor:
    """Column of each row's highest score."""
    group = peaks.argmax(1)
    lanes = scores.view(len(scores), GROUP, -1)
    return lanes[torch.arange(len(scores), device=scores.device), :, group].argmax(1) * peaks.shape[1] + group


def above(scores: torch.Tensor, peaks: torch.Tensor, threshold: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of every score above its row's threshold."""
    row, group = torch.nonzero(peaks > threshold[:, None], as_tuple=True)
    lanes = scores.view(len(scores), GROUP, -1)[row, :, group]
    inside, lane = torch.nonzero(lanes > threshold[row, None], as_tuple=True)
    return row[inside], lane * peaks.shape[1] + group[inside]
