"""What SeedLM's pruned search stands on: losses by candidates and by lengths of lists, and what each step costs.

    python tools/seedlm_pruning.py [--blocks 2000] [--log2-cells 11 12 14]

Losses are in squared error against the exhaustive search; costs are the least of many calls, of one core.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import torch

from edgepack.quant.codecs.seedlm.basis import Basis, outer_products, plain_basis
from edgepack.quant.codecs.seedlm.cells import make_cells
from edgepack.quant.codecs.seedlm.rounding import least_errors

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK, COEFFICIENTS, REGISTER = 8, 3, 16
_KEPT = 64  # highest scores of a block that are rounded: the winner is always among them


def ranked(x: torch.Tensor, basis: Basis) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores of all seeds, the `_KEPT` best seeds of each block by score, and their errors."""
    scores = outer_products(x) @ basis.bounds[:, : len(basis.seeds)]
    top = scores.topk(_KEPT, dim=1).indices
    block = torch.arange(len(x)).repeat_interleave(_KEPT)
    errors = [
        least_errors(x[own], basis.factors[seeds], COEFFICIENTS)
        for own, seeds in zip(block.split(8192), top.flatten().split(8192), strict=True)
    ]
    return scores, top, torch.cat(errors).view(-1, _KEPT)


def print_candidates(scores: torch.Tensor, top: torch.Tensor, errors: torch.Tensor) -> None:
    """How much is lost when only the highest scores are rounded."""
    exhaustive = errors.amin(1).mean()
    high = scores.gather(1, top)
    for count in (3, 4, 5, 6, 8):
        print(f"{count} candidates: {100 * (errors[:, :count].amin(1).mean() / exhaustive - 1):.2f} % more")
    for margin in (0.006, 0.008, 0.01, 0.012):
        near = high > high[:, :1] - margin
        loss = torch.where(near, errors, torch.inf).amin(1).mean() / exhaustive - 1
        print(f"scores within {margin} of the highest: {near.sum(1).float().mean():.1f} pairs, {100 * loss:.2f} % more")


def print_lists(x: torch.Tensor, basis: Basis, log2_cells: int, top: torch.Tensor, errors: torch.Tensor) -> None:
    """How much is lost when a block tries only the seeds that score highest at the centre of its cell."""
    cells = make_cells(BLOCK, COEFFICIENTS, REGISTER, "cpu", log2_cells)
    centres = cells.fine.reshape(-1, BLOCK)[cells.of(x)]
    at_centre = outer_products(centres) @ basis.bounds[:, : len(basis.seeds)]
    order = at_centre.argsort(dim=1, descending=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(len(basis.seeds)).expand_as(order)).gather(1, top)
    exhaustive = errors.amin(1)
    for length in (512, 1024, 1536, 2048, 3072, 4096):
        best = torch.where(rank < length, errors, torch.inf).amin(1)
        kept = best.isfinite()
        loss = 100 * (best[kept].mean() / exhaustive[kept].mean() - 1)
        print(
            f"2^{log2_cells} cells, lists of {length}: {loss:.2f} % more ({100 * (~kept).float().mean():.1f} % missed)"
        )


def least_time(work: Callable[[], object], calls: int = 60) -> float:
    """Seconds of the fastest call."""
    work()
    fastest = float("inf")
    for _ in range(calls):
        started = time.perf_counter()
        work()
        fastest = min(fastest, time.perf_counter() - started)
    return fastest


def print_costs(basis: Basis) -> None:
    """Nanoseconds of gathering, scoring, finding maxima and rounding."""
    columns, length = basis.bounds.T.contiguous(), 2048
    lists = iter(torch.randint(0, len(basis.seeds), (200, length)))
    gathered = torch.empty(length, columns.shape[1])
    gather = least_time(lambda: torch.index_select(columns, 0, next(lists), out=gathered))
    print(f"gathering a seed's bounds: {1e9 * gather / length:.1f} ns")
    for rows in (8, 64):
        products, scores = torch.randn(rows, columns.shape[1]), torch.empty(rows, length)
        seconds = least_time(lambda a=products, b=scores: torch.mm(a, gathered.T, out=b))
        print(f"scoring a seed for a block, {rows} blocks together: {1e9 * seconds / rows / length:.2f} ns")
    for groups in (31, 32, 64, 92, 96):
        scores = torch.randn(64, 16, groups)
        seconds = least_time(lambda a=scores: a.amax(1))
        print(f"maxima over 16 scores, {groups} groups: {1e9 * seconds / scores.numel():.2f} ns a score")
    x, seeds = torch.randn(4096, BLOCK), basis.factors[torch.randint(0, len(basis.seeds), (4096,))]
    seconds = least_time(lambda: least_errors(x, seeds, COEFFICIENTS))
    print(f"rounding a pair of block and seed: {1e9 * seconds / len(x):.0f} ns")


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=2000)
    parser.add_argument("--log2-cells", type=int, nargs="*", default=[11, 12, 14])
    options = parser.parse_args()
    torch.set_num_threads(1)
    basis = plain_basis(BLOCK, COEFFICIENTS, REGISTER, "cpu")
    x = torch.nn.functional.normalize(torch.randn(options.blocks, BLOCK, generator=torch.Generator().manual_seed(5)))
    scores, top, errors = ranked(x, basis)
    print(f"exhaustive: relative squared error {errors.amin(1).mean():.5f}")
    print_candidates(scores, top, errors)
    for log2_cells in options.log2_cells:
        print_lists(x, basis, log2_cells, top, errors)
    print_costs(basis)


if __name__ == "__main__":
    main()
