"""Cells of directions for SeedLM's pruned search, each with the seeds that come nearest to it. Publisher only.

Cells depend on C, P and K alone and are made once a process. What is done with them is left to `seedlm_pruned`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from edgepack.quant.codecs.seedlm.basis import outer_products, plain_basis

MAX_LOG2_CELLS = 14
# Lists' lengths are multiples of this, 32 groups of sixteen: maxima over groups take ten times as long for odd numbers.
LISTED = 512
_LLOYD_STEPS = 4
_SAMPLES_PER_CELL = 24
_TOGETHER = 4096


@dataclass(frozen=True)
class Cells:
    """Directions and their seeds.

    Attributes:
        coarse: float32 [A, C], unit vectors; a cell holds both signs.
        fine: float32 [A, B, C]: cell a·B + b is fine[a, b].
        seeds: int32 [A·B, listed], indices into the basis; `listed` is a multiple of `LISTED`.
    """

    coarse: torch.Tensor
    fine: torch.Tensor
    seeds: torch.Tensor

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """The cell of each direction [n, C], signs disregarded; int64 [n]."""
        first = _nearest(x, self.coarse)
        order = torch.argsort(first, stable=True)
        counts = torch.bincount(first, minlength=len(self.coarse)).tolist()
        cell = torch.empty_like(first)
        for a, members in enumerate(order.split(counts)):
            cell[members] = a * self.fine.shape[1] + _nearest(x[members], self.fine[a])
        return cell


def _nearest(x: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """The centre with the largest inner product of either sign, int64 [n]."""
    return torch.cat([(part @ centres.T).abs_().argmax(1) for part in x.split(_TOGETHER)])


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
    samples = torch.randn(_SAMPLES_PER_CELL << log2_cells, block, generator=torch.Generator().manual_seed(0))
    samples = torch.nn.functional.normalize(samples).to(device)
    coarse = _lloyd(samples, coarse_count)
    owner = _nearest(samples, coarse)
    # Every coarse cell has members at 32 samples a fine one; a few more keep the count whatever its share.
    own = [torch.cat([samples[owner == a], samples[:fine_count]]) for a in range(coarse_count)]
    fine = torch.stack([_lloyd(part, fine_count) for part in own])
    bounds = plain_basis(block, coefficients, register_bits, device)
    usable = bounds.bounds[:, : len(bounds.seeds)]
    seeds = [_seeds_near(coarse[a], fine[a], usable, log2_cells) for a in range(coarse_count)]
    return Cells(coarse, fine, torch.cat(seeds))


def _seeds_near(coarse: torch.Tensor, fine: torch.Tensor, usable: torch.Tensor, log2_cells: int) -> torch.Tensor:
    """The lists of the cells of one coarse cell, int32 [cells, listed], out of a longer list of the coarse cell."""
    listed = _listed(usable.shape[1], log2_cells, len(coarse))
    # The coarse cell's own list and a quarter more: what a fine cell would list beyond it would not be missed.
    wider = min(usable.shape[1], 5 * _listed(usable.shape[1], log2_cells // 2, len(coarse)) // 4)
    known = torch.topk(outer_products(coarse[None])[0] @ usable, wider, sorted=False).indices
    near = usable[:, known]
    parts = [(outer_products(part) @ near).topk(listed, dim=1, sorted=False).indices for part in fine.split(64)]
    return known[torch.cat(parts)].sort(dim=1).values.int()


def _listed(seeds: int, log2_cells: int, block: int) -> int:
    """Seeds in a cell's list, a multiple of `LISTED`: wider cells and longer blocks need more."""
    wanted = seeds * (2.0 if block <= 8 else 4.4) / 2 ** (log2_cells / 2)
    return max(1, min(round(wanted / LISTED), seeds // LISTED)) * LISTED
