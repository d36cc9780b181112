"""Rounds the least-squares coefficients of SeedLM to four bits and one exponent. Publisher only.

Which seeds are worth rounding for is left to `seedlm_search`.
"""

from __future__ import annotations

import torch

LOWEST, HIGHEST = -8, 7


def quantise(x: torch.Tensor, q: torch.Tensor, r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best coefficients near the least-squares ones: every rounding up or down, at two exponents.

    Args:
        x: blocks, float32 [n, C].
        q: orthonormal bases of their seeds, [n, C, P].
        r: upper triangles with U = Q·R, [n, P, P].

    Returns:
        error ‖x - U·c·2^e‖² [n], exponent e [n] int64, coefficients c [n, P].
    """
    y = torch.einsum("nc,ncp->np", x, q)
    t = _back_substitute(r, y)
    residual = (x * x).sum(-1) - (y * y).sum(-1)
    largest = t.abs().amax(-1).clamp_min(1e-30)
    top = torch.ceil(torch.log2(largest / (HIGHEST + 0.5)))
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], device=x.device)] * t.shape[1]).view(-1, t.shape[1])
    trials = [_round(t, y, r, exponent, corners) for exponent in (top, top - 1)]
    lower = trials[1][0] < trials[0][0]
    error = torch.where(lower, trials[1][0], trials[0][0]) + residual
    coefficients = torch.where(lower[:, None], trials[1][1], trials[0][1])
    return error.clamp_min(0), (top - lower.to(top.dtype)).long(), coefficients


def _back_substitute(r: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """T with R·t = y."""
    t = torch.empty_like(y)
    for p in reversed(range(y.shape[1])):
        rest = (r[:, p, p + 1 :] * t[:, p + 1 :]).sum(-1)
        t[:, p] = (y[:, p] - rest) / r[:, p, p]
    return t


def _round(
    t: torch.Tensor, y: torch.Tensor, r: torch.Tensor, exponent: torch.Tensor, corners: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least ‖y - R·c·2^e‖² over the corners of t's cell, clipped to four bits, and that c."""
    step = torch.exp2(exponent)
    cells = (torch.floor(t / step[:, None])[:, None] + corners).clamp_(LOWEST, HIGHEST)
    missed = torch.einsum("nkp,nqp->nkq", cells, r * step[:, None, None]) - y[:, None]
    error, corner = (missed * missed).sum(-1).min(-1)
    return error, cells[torch.arange(len(t), device=t.device), corner]
