"""Finds an order of channels in which few blocks are coarse: exchanges between two blocks while they lower the cost.

Rounded in blocks, a channel that is large at a token makes that token's whole block coarse. Outliers therefore belong
beside channels whose errors cost little, and beside those that are large at the same tokens.
"""

from __future__ import annotations

import torch

_SWEEPS = 12  # over all pairs of blocks; later ones find next to nothing
_LEAST_GAIN = 1e-4  # of two blocks' cost


def find_order(squares: torch.Tensor, costs: torch.Tensor, block: int, sweeps: int = _SWEEPS) -> torch.Tensor:
    """The order of channels that lowers Σ over items and blocks of (largest square · sum of costs).

    Args:
        squares: what is rounded, item by item (a token's inputs, a row's weights), squared [items, channels].
        costs: of a unit's square of error there [items, channels].
        block: consecutive channels that share a step; `channels` is a multiple.
        sweeps: at most.

    Returns:
        int64 [channels]: which channel stands at each place; channels that gain nothing keep their places.
    """
    size, cost = squares.T.contiguous(), costs.T.contiguous()
    order = torch.arange(len(size), device=size.device).reshape(-1, block)
    for _ in range(sweeps):
        exchanged = False
        for first in range(len(order)):
            for second in range(first + 1, len(order)):
                exchanged |= _exchange(order, first, second, size, cost)
        if not exchanged:
            break
    return order.reshape(-1).cpu()


def _exchange(order: torch.Tensor, first: int, second: int, size: torch.Tensor, cost: torch.Tensor) -> bool:
    """Exchange the two channels of two blocks that lower their cost most, in place; whether any does."""
    ours, theirs = order[first], order[second]
    our_size, our_cost, their_size, their_cost = size[ours], cost[ours], size[theirs], cost[theirs]
    before = (our_size.amax(0) * our_cost.sum(0)).sum() + (their_size.amax(0) * their_cost.sum(0)).sum()
    after = _after(our_size, our_cost, their_size, their_cost) + _after(their_size, their_cost, our_size, our_cost).T
    best = int(after.argmin())
    if float(after.flatten()[best]) >= float(before) * (1 - _LEAST_GAIN):
        return False
    here, there = divmod(best, order.shape[1])
    moved = ours[here].clone()
    order[first, here], order[second, there] = theirs[there].clone(), moved
    return True


def _after(size: torch.Tensor, cost: torch.Tensor, new_size: torch.Tensor, new_cost: torch.Tensor) -> torch.Tensor:
    """Cost of a block when channel i of it goes and channel j of another comes: [i, j]; arguments [block, items]."""
    largest = size.topk(min(2, len(size)), dim=0).values
    without = torch.where(size >= largest[0], largest[-1], largest[0])
    remaining = cost.sum(0) - cost
    pairs = zip(without, remaining, strict=True)
    return torch.stack([(torch.maximum(left, new_size) * (rest + new_cost)).sum(-1) for left, rest in pairs])
