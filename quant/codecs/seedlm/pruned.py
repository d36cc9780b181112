"""SeedLM's coarse-to-fine search: each block tries only the seeds that suit its direction. Publisher only.

The sphere of directions is cut into cells (`seedlm_cells`); a cell lists the seeds whose subspaces come nearest to
its centre. Blocks are sorted by cell, so that the seeds which a cell lists are gathered once for all its blocks and
scored in one product. How seeds are measured is left to `seedlm_search`.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch

from edgepack.quant.codecs.seedlm.basis import Basis, outer_products
from edgepack.quant.codecs.seedlm.best import Best, improve, tile_workers
from edgepack.quant.codecs.seedlm.cells import MAX_LOG2_CELLS, make_cells

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A seed that is gathered for a cell (28 ns) costs as much as scoring it for some 30 blocks.
_BLOCKS_PER_CELL = 24
# Scores that are made before any is looked at: a MiB of float32.
_SCORES = 1 << 18
# Batches of one piece of work: a thousand blocks are measured in one call of many small operations.
_BATCHES = 4
# Highest scores that are rounded and measured for each block: a sixth would lower the squared error by 0.05 %. Scores
# know nothing of weights: measured with those of a real model's inputs, five leave 2 to 4 % more than every seed would,
# these .9 to 1.3 %, and three times as many .9 to 1.1 %.
_CANDIDATES, _WEIGHTED_CANDIDATES = 5, 16
# Scores of a group, of which the highest alone is a candidate.
_LANES = 16


class _Run(NamedTuple):
    """Blocks `start` (included) to `stop` (not included) in order of cells, of one cell."""

    cell: int
    start: int
    stop: int


def search_pruned(x: torch.Tensor, basis: Basis, best: Best, roots: torch.Tensor | None = None) -> None:
    """Improve `best` with the seeds of each block's cell.

    Seeds are looked for as if all columns weighed the same; those that come nearest are measured with the weights.

    Args:
        x: float32 [blocks, C], norms at most about 1.
        basis: without weights.
        best: improved.
        roots: of the weights of every block's columns, [blocks, C]; None where all are 1.
    """
    log2_cells = min(MAX_LOG2_CELLS, max(1, len(x) // _BLOCKS_PER_CELL).bit_length())
    cells = make_cells(x.shape[1], basis.coefficients, basis.register_bits, str(x.device), log2_cells)
    cell = cells.of(x)
    order = torch.argsort(cell, stable=True)
    counts = torch.bincount(cell, minlength=len(cells.seeds)).tolist()
    columns = basis.bounds.T.contiguous()

    def search(batches: Sequence[list[_Run]]) -> None:
        chosen = order[batches[0][0].start : batches[-1][-1].stop]
        own = x[chosen]
        weights = None if roots is None else roots[chosen]
        seed = _candidates(own, columns, cells.seeds, batches, _CANDIDATES if roots is None else _WEIGHTED_CANDIDATES)
        block = torch.arange(len(own), device=x.device).repeat_interleave(seed.shape[1])
        found = Best.nothing(len(own), x.device)
        improve(own if weights is None else own * weights, basis, block, seed.flatten(), found, weights)
        best.put(chosen, found)

    batches = list(_batches(counts, max(1, _SCORES // cells.seeds.shape[1])))
    with tile_workers(x.device) as workers:
        list(workers.map(search, (batches[i : i + _BATCHES] for i in range(0, len(batches), _BATCHES))))


def _runs(counts: Sequence[int], most: int) -> Iterator[_Run]:
    """Every block, by cells that hold `counts` blocks, at most `most` of them together."""
    for cell, (end, count) in enumerate(zip(accumulate(counts), counts, strict=True)):
        for start in range(end - count, end, most):
            yield _Run(cell, start, min(start + most, end))


def _batches(counts: Sequence[int], most: int) -> Iterator[list[_Run]]:
    """Neighbouring runs of at most `most` blocks in all."""
    batch: list[_Run] = []
    for run in _runs(counts, most):
        if batch and run.stop - batch[0].start > most:
            yield batch
            batch = []
        batch.append(run)
    if batch:
        yield batch


def _candidates(
    x: torch.Tensor, columns: torch.Tensor, listed: torch.Tensor, batches: Sequence[list[_Run]], count: int
) -> torch.Tensor:
    """The `count` seeds with the highest scores for each block, int64 [blocks, count]; fewer of a shorter list."""
    products = outer_products(x).split([batch[-1].stop - batch[0].start for batch in batches])
    space = torch.empty(max(map(len, products)), listed.shape[1], device=x.device)
    gathered = torch.empty(listed.shape[1], columns.shape[1], device=x.device)
    bounds, found = gathered.T, []
    for batch, own in zip(batches, products, strict=True):
        lengths = [run.stop - run.start for run in batch]
        scores = space[: len(own)]
        for run, rows, out in zip(batch, own.split(lengths), scores.split(lengths), strict=True):
            torch.index_select(columns, 0, listed[run.cell], out=gathered)
            torch.mm(rows, bounds, out=out)
        owner = torch.tensor([run.cell for run in batch], device=x.device)
        owner = owner.repeat_interleave(torch.tensor(lengths, device=x.device))
        found.append(listed[owner[:, None], _highest(scores, count)])
    return torch.cat(found).long()


def _highest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Columns of the highest scores of each row's best groups, [blocks, candidates]."""
    lanes = scores.view(len(scores), _LANES, -1)
    peaks = lanes.amax(1)
    group = peaks.topk(min(count, peaks.shape[1]), dim=1, sorted=False).indices
    everywhere = torch.arange(len(scores), device=scores.device)[:, None]
    return lanes[everywhere, :, group].argmax(2) * peaks.shape[1] + group
