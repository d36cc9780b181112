"""Rounds the least-squares coefficients of SeedLM to four bits and one exponent. Publisher only.

Which seeds are worth rounding for is left to `seedlm_search`. Everything lies with the pairs of block and seed along
the last axis, so that each operation runs over thousands of neighbouring floats.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

LOWEST, HIGHEST = -8, 7
# Floats of the largest array that is made: pairs are measured in parts that stay in a second-level cache.
_CACHED = 1 << 16


class _Corners(NamedTuple):
    """Every rounding up or down of n pairs' coefficients, at two exponents.

    Attributes:
        residual: [n], what no coefficients reach: ‖x‖² - ‖Qᵀx‖².
        missed: [2^P, 2, n], ‖y - R·c·2^e‖²; the p-th bit of a corner's number says that c_p is rounded up.
        floors: [P, 2, n], coefficients rounded down, not clipped.
        top: [n], the larger exponent, a whole number; the other is one less.
    """

    residual: torch.Tensor
    missed: torch.Tensor
    floors: torch.Tensor
    top: torch.Tensor


def factors(q: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """What one row for each seed keeps together: Q [S, C, P] row by row, then the upper triangle of R [S, P, P]."""
    upper = torch.triu_indices(r.shape[1], r.shape[1], device=r.device)
    return torch.cat([q.flatten(1), r[:, upper[0], upper[1]]], dim=1).contiguous()


def least_errors(x: torch.Tensor, seeds: torch.Tensor, count: int) -> torch.Tensor:
    """‖x - U·c·2^e‖² with the best c and e near the least-squares ones, [n].

    Args:
        x: blocks, float32 [n, C].
        seeds: the `factors` of their seeds, [n, …].
        count: P.
    """
    part = max(1, _CACHED >> (count + 1))
    errors = []
    for blocks, own in zip(x.split(part), seeds.split(part), strict=True):
        corners = _corners(blocks, own, count)
        errors.append(corners.missed.flatten(0, 1).amin(0) + corners.residual)
    return torch.cat(errors).clamp_min_(0)


def quantise(x: torch.Tensor, seeds: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The coefficients that `least_errors` finds, and their exponent.

    Args:
        x: blocks, float32 [n, C].
        seeds: the `factors` of their seeds, [n, …].
        count: P.

    Returns:
        exponent e [n] int64, coefficients c [n, P] in float32, whole numbers from -8 to 7.
    """
    part = max(1, _CACHED >> (count + 1))
    pairs = [_nearest(_corners(*both, count)) for both in zip(x.split(part), seeds.split(part), strict=True)]
    return torch.cat([exponent for exponent, _ in pairs]), torch.cat([coefficients for _, coefficients in pairs])


def _nearest(corners: _Corners) -> tuple[torch.Tensor, torch.Tensor]:
    number = corners.missed.flatten(0, 1).argmin(0)
    corner, lower = number >> 1, number & 1
    count, _, pairs = corners.floors.shape
    floors = corners.floors[:, lower, torch.arange(pairs, device=number.device)]
    raised = (corner >> torch.arange(count, device=number.device)[:, None]) & 1
    return corners.top.long() - lower, (floors + raised).clamp_(LOWEST, HIGHEST).T


def _corners(x: torch.Tensor, seeds: torch.Tensor, count: int) -> _Corners:
    """Enumerate the roundings from the last coefficient to the first, as R is triangular."""
    blocks, known = x.T.contiguous(), seeds.T.contiguous()
    q = known[: len(blocks) * count].view(len(blocks), count, -1)
    r = _triangle(known[len(blocks) * count :], count)
    y = (q * blocks[:, None]).sum(0)
    t = _back_substitute(r, y)
    largest = t.abs().amax(0).clamp_min(1e-30)
    top = torch.ceil(torch.log2(largest / (HIGHEST + 0.5)))
    step = torch.exp2(torch.stack([top, top - 1]))
    floors = torch.floor(t[:, None] / step)
    rest = [row.expand(1, 2, -1) for row in y]
    missed = torch.zeros_like(rest[0])
    for p in reversed(range(count)):
        both = torch.stack([floors[p], floors[p] + 1]).clamp_(LOWEST, HIGHEST) * step
        rest = [(rest[i][:, None] - r[i][p] * both).flatten(0, 1) for i in range(p + 1)]
        missed = (missed[:, None] + (rest[p] * rest[p]).unflatten(0, (-1, 2))).flatten(0, 1)
    return _Corners((blocks * blocks).sum(0) - (y * y).sum(0), missed, floors, top)


def _triangle(packed: torch.Tensor, count: int) -> list[list[torch.Tensor]]:
    """Rows of R, each entry [n]; entry [i][p] with p below i is never read."""
    rows, first = [], 0
    for i in range(count):
        own = list(packed[first : first + count - i])
        rows.append([*own[:1]] * i + own)
        first += count - i
    return rows


def _back_substitute(r: list[list[torch.Tensor]], y: torch.Tensor) -> torch.Tensor:
    """T [P, n] with R·t = y."""
    t = torch.empty_like(y)
    for p in reversed(range(len(y))):
        rest = y[p].clone()
        for k in range(p + 1, len(y)):
            rest -= r[p][k] * t[k]
        t[p] = rest / r[p][p]
    return t
