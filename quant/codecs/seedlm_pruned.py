"""SeedLM's coarse-to-fine search: each block tries only the seeds that suit its direction. Publisher only.

The sphere of directions is cut into cells, in two levels; a cell lists the seeds whose subspaces come nearest
to its centre. Within its list a block's search is exact. How seeds are measured is left to `seedlm_search`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from edgepack.quant.codecs.seedlm_search import (
    GROUP,
    SLACK,
    Basis,
    Best,
    above,
    fields,
    improve,
    outer_products,
    plain_basis,
    tile_workers,
)

MAX_CELLS = 4096
# Enough blocks to a cell that its product is worth gathering its seeds for.
_BLOCKS_PER_CELL = 16
_LLOYD_STEPS = 4
# Blocks of one piece of work: their scores (512 × 2048 of float32, 4 MiB) stay in the cache.
_TOGETHER = 512


@dataclass(frozen=True)
class Cells:
    """Directions and their seeds.

    Attributes:
        coarse: float32 [A, C], unit vectors; a cell holds both signs.
        fine: float32 [A, B, C]: cell a·B + b is fine[a, b].
        seeds: int64 [A·B, listed], indices into the basis; `listed` is a multiple of the group.
    """

    coarse: torch.Tensor
    fine: torch.Tensor
    seeds: torch.Tensor

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """The cell of each direction [n, C], signs disregarded."""
        first = _nearest(x, self.coarse)
        cell = torch.empty_like(first)
        for a in range(len(self.coarse)):
            members = torch.nonzero(first == a)[:, 0]
            cell[members] = a * self.fine.shape[1] + _nearest(x[members], self.fine[a])
        return cell


def search_pruned(x: torch.Tensor, basis: Basis, best: Best) -> None:
    """Improve `best` with the seeds of each block's cell. `x`: float32 [blocks, C]; `basis` without weights."""
    wanted = max(1, min(MAX_CELLS, len(x) // _BLOCKS_PER_CELL))
    cells = make_cells(x.shape[1], basis.q.shape[2], basis.register_bits, str(x.device), wanted.bit_length() - 1)
    cell = cells.of(x)
    order = torch.argsort(cell, stable=True)
    ends = torch.bincount(cell, minlength=len(cells.seeds)).cumsum(0).tolist()
    columns = basis.bounds.T.contiguous()

    def search(piece: tuple[int, int]) -> None:
        first, last = piece
        start = ends[first - 1] if first else 0
        chosen = order[start : ends[last - 1]]
        found = Best(*(values[chosen] for values in fields(best)))
        bounds = [0, *(end - start for end in ends[first:last])]
        _search_cells(x[chosen], basis, columns, cells.seeds[first:last], bounds, found)
        for whole, part in zip(fields(best), fields(found), strict=True):
            whole[chosen] = part

    with tile_workers(x.device) as workers:
        list(workers.map(search, _pieces(ends)))


def _pieces(ends: list[int]) -> list[tuple[int, int]]:
    """Ranges of cells (first, after the last) that hold about `_TOGETHER` blocks each, none without blocks."""
    pieces, first, start = [], 0, 0
    for cell, end in enumerate(ends):
        if end - start >= _TOGETHER or (cell + 1 == len(ends) and end > start):
            pieces.append((first, cell + 1))
            first, start = cell + 1, end
    return pieces


def _search_cells(
    x: torch.Tensor, basis: Basis, columns: torch.Tensor, listed: torch.Tensor, bounds: list[int], best: Best
) -> None:
    """Search the lists of neighbouring cells; blocks bounds[i] to bounds[i + 1] of `x` lie in the i-th."""
    products, norms = outer_products(x), (x * x).sum(-1)
    scores = torch.empty(len(x), listed.shape[1], device=x.device)
    for i, (start, stop) in enumerate(pairwise(bounds)):
        if start < stop:
            torch.mm(products[start:stop], columns.index_select(0, listed[i]).T, out=scores[start:stop])
    counts = torch.tensor(bounds, device=x.device).diff()
    owner = torch.arange(len(listed), device=x.device).repeat_interleave(counts)
    everywhere = torch.arange(len(x), device=x.device)
    improve(x, basis, everywhere, listed[owner, _highest(scores)], best)
    block, inside = above(scores, norms - best.error - SLACK)
    improve(x, basis, block, listed[owner[block], inside], best)


def _highest(scores: torch.Tensor) -> torch.Tensor:
    """Column of each row's highest score, by way of the maxima of groups."""
    groups = scores.view(len(scores), -1, GROUP)
    group = groups.amax(-1).argmax(1)
    return group * GROUP + groups[torch.arange(len(scores), device=scores.device), group].argmax(1)


def _nearest(x: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """The centre with the largest inner product of either sign, int64 [n]."""
    return torch.cat([(part @ centres.T).abs_().argmax(1) for part in x.split(4096)])


def _lloyd(samples: torch.Tensor, count: int) -> torch.Tensor:
    """`count` centres of directions, unit vectors [count, C]."""
    centres = samples[:count].clone()
    for _ in range(_LLOYD_STEPS):
        cell = _nearest(samples, centres)
        sign = torch.sign((samples * centres[cell]).sum(-1))
        sums = torch.zeros_like(centres).index_add_(0, cell, samples * sign[:, None])
        centres = torch.nn.functional.normalize(torch.where(sums.any(1)[:, None], sums, centres))
    return centres


@lru_cache(maxsize=8)
def make_cells(block: int, coefficients: int, register_bits: int, device: str, log2_cells: int) -> Cells:
    """2^log2_cells cells of directions in `block` dimensions; always the same ones."""
    coarse_count = 1 << (log2_cells // 2)
    fine_count = 1 << (log2_cells - log2_cells // 2)
    samples = torch.randn(32 << log2_cells, block, generator=torch.Generator().manual_seed(0))
    samples = torch.nn.functional.normalize(samples).to(device)
    coarse = _lloyd(samples, coarse_count)
    owner = _nearest(samples, coarse)
    # Every coarse cell has members at 32 samples a fine one; a few more keep the count whatever its share.
    own = [torch.cat([samples[owner == a], samples[:fine_count]]) for a in range(coarse_count)]
    fine = torch.stack([_lloyd(part, fine_count) for part in own])
    basis = plain_basis(block, coefficients, register_bits, device)
    listed = _listed(len(basis.seeds), log2_cells, block)
    usable = basis.bounds[:, : len(basis.seeds)]
    parts = fine.reshape(-1, block).split(64)
    seeds = [(outer_products(part) @ usable).topk(listed, dim=1, sorted=False).indices for part in parts]
    return Cells(coarse, fine, torch.cat(seeds))


def _listed(seeds: int, log2_cells: int, block: int) -> int:
    """Seeds in a cell's list, a multiple of the group: wider cells and longer blocks need more."""
    wanted = int(seeds * (2 if block <= 8 else 3) / 2 ** (log2_cells / 2))
    return max(GROUP, min(wanted, seeds) // GROUP * GROUP)
