"""Finds the seeds of SeedLM: every seed for every block, as one big blocked matrix product. Publisher only.

Storage and decoding are left to `seedlm`, bounds to `seedlm_basis`. The search is exact: one matrix product bounds
all pairs of block and seed, and only the few seeds whose bound is below the block's best error so far (about 20 of
65535) are rounded and measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.quant.codecs.seedlm.basis import GROUP, Basis, outer_products, seed_basis
from edgepack.quant.codecs.seedlm.best import Best, improve, tile_workers
from edgepack.quant.codecs.seedlm.found import Found, pack_coefficients
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
    for members, root in _weighted_groups(len(blocks), codec.block, column_weights, first % columns):
        basis = seed_basis(codec.block, codec.coefficients, codec.register_bits, codec.device, root)
        chosen = torch.from_numpy(members).to(codec.device)
        local = x[chosen] * torch.from_numpy(root).to(codec.device)
        found = Best.nothing(len(chosen), x.device)
        search_exhaustive(local, basis, found)
        best.put(chosen, local, basis, found)
    return best.finished(scale)


def search_together(weights: Sequence[NDArray[np.float32]], codec: SeedLM) -> list[Found]:
    """As `search_seeds` for several matrices whose columns all weigh the same.

    The pruned search finds more blocks of each direction in several matrices than in one, and is faster for it.
    """
    from edgepack.quant.codecs.seedlm.pruned import search_pruned

    parts = [_scaled_blocks(weight, codec.block) for weight in weights]
    x = torch.from_numpy(np.concatenate([blocks for blocks, _ in parts])).to(codec.device)
    basis = seed_basis(codec.block, codec.coefficients, codec.register_bits, codec.device)
    found = Best.nothing(len(x), x.device)
    few = codec.search == "exhaustive" or len(basis.seeds) < _FEWEST_PRUNED
    (search_exhaustive if few else search_pruned)(x, basis, found)
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

    def put(self, chosen: torch.Tensor, x: torch.Tensor, basis: Basis, found: Best) -> None:
        """Round the coefficients of blocks `chosen` (indices), whose weights are `x`, at the seeds that were found."""
        if not len(basis.seeds):
            return
        seed = found.seed
        exponent, coefficients = quantise(x, basis.factors.index_select(0, seed), basis.coefficients)
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


def _weighted_groups(
    count: int, block: int, column_weights: NDArray[np.float64], first: int
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Blocks that lie over the same columns, with the roots of these columns' weights, mean square 1.

    Args:
        count: of blocks.
        block: weights in one.
        column_weights: [columns].
        first: column of the first block's first weight.
    """
    columns = len(column_weights)
    starts = (first + np.arange(count, dtype=np.int64) * block) % columns
    groups: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
    for start in np.unique(starts):
        weights = column_weights[(start + np.arange(block)) % columns]
        # A floor keeps U(s) of full rank where some columns are never active.
        weights = np.maximum(weights, 1e-4 * max(float(weights.max()), 1e-12))
        root = np.sqrt(weights / weights.mean()).astype(np.float32)
        groups.append((np.flatnonzero(starts == start), root))
    return groups


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
