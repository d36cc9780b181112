"""Finds the seeds of SeedLM: every seed for every block, as one big blocked matrix product. Publisher only.

Storage and decoding are left to `seedlm`. The search is exact. For seed s with an orthonormal basis Q of the
columns of U(s), no coefficients reach an error below ‖x‖² - ‖Qᵀx‖², and ‖Qᵀx‖² = ⟨QQᵀ, xxᵀ⟩ is one inner product
of C(C+1)/2 numbers. So one matrix product bounds all pairs of block and seed, and only the few seeds whose bound
is below the block's best error so far (about 20 of 65535) are quantised and measured.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from edgepack.quant.codecs import lfsr
from edgepack.quant.codecs.seedlm_rounding import quantise
from edgepack.quant.codecs.torch_threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepack.quant.codecs.seedlm import SeedLM
    from numpy.typing import NDArray

MAX_CONDITION = 100  # seeds whose matrix is worse conditioned are never used
# Tiles of the product: 1024 blocks × 1024 seeds are 4 MiB of scores, which stay in the caches of two cores.
_BLOCK_TILE = 1024
_SEED_TILE = 1024
# Scores are compared by groups: one maximum for 32 seeds, and a look inside only where it is large enough.
GROUP = 32
# Rounding of the float32 product, relative to ‖x‖² = 1: bounds are loosened by this much, so that none is missed.
SLACK = 4e-6
_BLOCK_TILE_ACCELERATOR = 16384


@dataclass(frozen=True)
class Found:
    """The best seed of every block.

    Attributes:
        seeds: [blocks], 1 … 2^K - 1.
        exponents: [blocks], spanning at most 16 values.
        coefficients: [blocks, P], -8 … 7.
    """

    seeds: NDArray[np.uint16]
    exponents: NDArray[np.int32]
    coefficients: NDArray[np.int8]


@dataclass(frozen=True)
class Basis:
    """U(s) = Q·R for every usable seed, and what the product needs.

    Attributes:
        seeds: int64 [S].
        q: float32 [S, C, P], orthonormal columns.
        r: float32 [S, P, P], upper triangular.
        bounds: float32 [C(C+1)/2, S']: the upper triangle of QQᵀ with the off-diagonal doubled; columns beyond
            S fill up the last group and are zero.
        register_bits: K.
    """

    seeds: torch.Tensor
    q: torch.Tensor
    r: torch.Tensor
    bounds: torch.Tensor
    register_bits: int


@dataclass
class Best:
    """The best of what has been measured so far; filled in place.

    Attributes:
        error: float32 [blocks], of blocks scaled to norm ½ … 1.
        seed, exponent: int64 [blocks].
        coefficients: float32 [blocks, P].
    """

    error: torch.Tensor
    seed: torch.Tensor
    exponent: torch.Tensor
    coefficients: torch.Tensor


def search_seeds(weight: NDArray[np.float32], codec: SeedLM, column_weights: NDArray[np.float64] | None) -> Found:
    """Best seed, exponent and coefficients of every block of a matrix.

    Args:
        weight: float32 [rows, columns], cut into blocks row by row; the last block is padded with zeros.
        codec: gives C, P, K, the kind of search and the device.
        column_weights: [columns], weighs squared residuals; None for all equal.
    """
    from edgepack.quant.codecs.seedlm_pruned import search_pruned

    blocks, scale = _scaled_blocks(weight, codec.block)
    best = _start(len(blocks), codec)
    x = torch.from_numpy(blocks).to(codec.device)
    for members, root in _weighted_groups(weight.shape, codec.block, column_weights):
        basis = seed_basis(codec.block, codec.coefficients, codec.register_bits, codec.device, root)
        chosen = torch.arange(len(blocks)) if members is None else torch.from_numpy(members)
        chosen = chosen.to(codec.device)
        local = x[chosen] if root is None else x[chosen] * torch.from_numpy(root).to(codec.device)
        found = _start(len(chosen), codec)
        search = search_exhaustive if codec.search == "exhaustive" or root is not None else search_pruned
        search(local, basis, found)
        for whole, part in zip(fields(best), fields(found), strict=True):
            whole[chosen] = part
    return _finish(best, scale)


def _scaled_blocks(weight: NDArray[np.float32], block: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Blocks times 2^-m with norms in [½, 1) (zero blocks stay zero), and the m."""
    blocks = np.zeros((-(-weight.size // block), block), dtype=np.float32)
    blocks.reshape(-1)[: weight.size] = weight.reshape(-1)
    norms = np.sqrt(np.einsum("ij,ij->i", blocks, blocks, dtype=np.float64))
    _, scale = np.frexp(norms)
    return np.ldexp(blocks, -scale[:, None]).astype(np.float32), scale.astype(np.int32)


def _weighted_groups(
    shape: tuple[int, ...], block: int, column_weights: NDArray[np.float64] | None
) -> list[tuple[NDArray[np.int64] | None, NDArray[np.float32] | None]]:
    """Blocks that lie over the same columns, with the roots of these columns' weights, mean square 1."""
    if column_weights is None:
        return [(None, None)]
    columns = shape[-1]
    starts = np.arange(-(-int(np.prod(shape)) // block), dtype=np.int64) * block % columns
    groups: list[tuple[NDArray[np.int64] | None, NDArray[np.float32] | None]] = []
    for start in np.unique(starts):
        weights = column_weights[(start + np.arange(block)) % columns]
        # A floor keeps U(s) of full rank where some columns are never active.
        weights = np.maximum(weights, 1e-4 * max(float(weights.max()), 1e-12))
        root = np.sqrt(weights / weights.mean()).astype(np.float32)
        groups.append((np.flatnonzero(starts == start), root))
    return groups


def _start(count: int, codec: SeedLM) -> Best:
    """Nothing is measured: coefficients 0 at seed 1, which leave the whole block as error."""
    integers = torch.ones(count, dtype=torch.int64, device=codec.device)
    return Best(
        torch.full((count,), float("inf"), device=codec.device),
        integers,
        torch.full_like(integers, -(10**6)),
        torch.zeros(count, codec.coefficients, device=codec.device),
    )


def fields(best: Best) -> tuple[torch.Tensor, ...]:
    """The four tensors of `best`."""
    return best.error, best.seed, best.exponent, best.coefficients


@lru_cache(maxsize=2)
def plain_basis(block: int, coefficients: int, register_bits: int, device: str) -> Basis:
    """The basis of every seed where all columns weigh the same."""
    matrices = torch.from_numpy(lfsr.matrices(register_bits, block, coefficients))
    return _make_basis(matrices.to(device), register_bits)


def seed_basis(
    block: int, coefficients: int, register_bits: int, device: str, root: NDArray[np.float32] | None = None
) -> Basis:
    """The basis of every seed, of diag(root)·U(s) where roots of weights are given."""
    if root is None:
        return plain_basis(block, coefficients, register_bits, device)
    matrices = torch.from_numpy(lfsr.matrices(register_bits, block, coefficients) * root[:, None])
    return _make_basis(matrices.to(device), register_bits)


def _make_basis(matrices: torch.Tensor, register_bits: int) -> Basis:
    """Q, R and the bounds of U [S, C, P], without the seeds whose condition number is above the limit."""
    q, r = _gram_schmidt(matrices.double())
    values = torch.linalg.eigvalsh(r.mT @ r)
    usable = torch.nonzero(values[:, -1] <= values[:, 0] * MAX_CONDITION**2)[:, 0]
    q, r = q[usable].float(), r[usable].float()
    upper = torch.triu_indices(q.shape[1], q.shape[1], device=q.device)
    bounds = torch.zeros(upper.shape[1], -(-len(usable) // GROUP) * GROUP, device=q.device)
    for row, (i, j) in enumerate(upper.T.tolist()):
        bounds[row, : len(usable)] = (q[:, i] * q[:, j]).sum(-1) * (1 if i == j else 2)
    return Basis(usable + 1, q, r, bounds, register_bits)


def _gram_schmidt(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """QR of many small matrices [S, C, P], column by column, each column orthogonalised twice."""
    columns: list[torch.Tensor] = []
    r = torch.zeros(matrices.shape[0], matrices.shape[2], matrices.shape[2], dtype=matrices.dtype).to(matrices.device)
    for p in range(matrices.shape[2]):
        vector = matrices[:, :, p].clone()
        for _ in range(2):
            for earlier, column in enumerate(columns):
                inner = (column * vector).sum(-1)
                r[:, earlier, p] += inner
                vector -= column * inner[:, None]
        r[:, p, p] = torch.linalg.vector_norm(vector, dim=-1)
        columns.append(vector / r[:, p, p, None].clamp_min(1e-30))
    return torch.stack(columns, -1), r


def outer_products(x: torch.Tensor) -> torch.Tensor:
    """The upper triangle of xxᵀ for each row of x: what `Basis.bounds` is multiplied with."""
    upper = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
    return x[:, upper[0]] * x[:, upper[1]]


def search_exhaustive(x: torch.Tensor, basis: Basis, best: Best) -> None:
    """Improve `best` until no seed has a smaller error. `x`: float32 [blocks, C], norms at most about 1."""
    tile = _BLOCK_TILE if x.device.type == "cpu" else _BLOCK_TILE_ACCELERATOR

    def search(start: int) -> None:
        part = slice(start, start + tile)
        _search_tile(x[part], basis, Best(*(values[part] for values in fields(best))))

    with tile_workers(x.device) as workers:
        list(workers.map(search, range(0, len(x), tile)))


@contextmanager
def tile_workers(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Threads that take a tile each, with torch's own threading off: small operations need no barriers."""
    with one_thread() as threads, ThreadPoolExecutor(threads if device.type == "cpu" else 1) as workers:
        yield workers


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
        if first == 0:
            everywhere = torch.arange(len(x), device=x.device)
            improve(x, basis, everywhere, scores.argmax(1).clamp_max(len(basis.seeds) - 1), best)
        block, seed = above(scores, norms - best.error - SLACK)
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


def above(scores: torch.Tensor, threshold: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of every score above its row's threshold; columns are a multiple of the group."""
    groups = scores.view(len(scores), -1, GROUP)
    row, group = torch.nonzero(groups.amax(-1) > threshold[:, None], as_tuple=True)
    inside, lane = torch.nonzero(groups[row, group] > threshold[row, None], as_tuple=True)
    return row[inside], group[inside] * GROUP + lane


def improve(x: torch.Tensor, basis: Basis, block: torch.Tensor, seed: torch.Tensor, best: Best) -> None:
    """Quantise and measure pairs of block and seed (indices), and keep what is better; ties keep the lower seed."""
    known = seed < len(basis.seeds)
    block, seed = block[known], seed[known]
    if not len(block):
        return
    gathered = (values.index_select(0, index) for values, index in ((x, block), (basis.q, seed), (basis.r, seed)))
    error, exponent, coefficients = quantise(*gathered)
    least = torch.full_like(best.error, float("inf")).scatter_reduce(0, block, error, "amin")
    winner = torch.nonzero((error == least[block]) & (error < best.error[block]))[:, 0]
    far = torch.full_like(best.seed, 2**62)
    lowest = far.scatter_reduce(0, block[winner], seed[winner], "amin")
    winner = winner[seed[winner] == lowest[block[winner]]]
    target = block[winner]
    best.error[target] = error[winner]
    best.seed[target] = basis.seeds[seed[winner]]
    best.exponent[target] = exponent[winner]
    best.coefficients[target] = coefficients[winner]


def _finish(best: Best, scale: NDArray[np.int32]) -> Found:
    """Exponents of the unscaled blocks, brought into one range of sixteen."""
    coefficients = best.coefficients.cpu().numpy()
    exponents = best.exponent.cpu().numpy() + scale
    used = coefficients.any(axis=1)
    top = int(exponents[used].max()) if used.any() else 0
    clipped = np.clip(exponents, top - 15, top)
    # Blocks 2^15 times smaller than the largest lose coefficients to the common range.
    shrunk = np.rint(np.ldexp(coefficients, np.clip(exponents - clipped, -100, 0).astype(np.int32)[:, None]))
    seeds = best.seed.cpu().numpy().astype(np.uint16)
    return Found(seeds, clipped.astype(np.int32), shrunk.astype(np.int8))
