"""Moves of integers as choices among -1, 0 and +1, relaxed by Gumbel noise; of the weights nearest to a boundary alone.

The Gumbel-softmax relaxation (Jang et al., arXiv 1611.01144; Maddison et al., arXiv 1611.00712), which GSQ (arXiv
2604.18556) uses to assign weights to levels and to refine K-quants in place. Here the three logits of a weight come of
one latent number u, -κ (u - k)² for k in {-1, 0, 1}: a choice between neighbours, with one parameter in place of three.
Which matrix it is and what a move is worth are left to `tensors`.
"""

from __future__ import annotations

import torch
from torch import nn

SHARE = 8  # one weight of so many may move: those nearest to a boundary; the others keep no parameter and no moments
_SHARPNESS = 8.0  # κ: a weight 1/16 from its boundary crosses it in a quarter of the draws
_FIRST, _LAST = 1.0, 0.1  # temperature; draws of the last are nearly whole moves


def temperature(step: int, steps: int) -> float:
    """Of a step (from 0) among `steps`: falls from 1 to 0.1, by the same factor each step."""
    return float(_FIRST * (_LAST / _FIRST) ** (min(step, steps) / max(steps, 1)))


class RelaxedMoves(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Which weights of a matrix may move, and how far each has come.

    Args:
        offsets: where weights want to lie, minus their integers: float, any shape, from -0.5 to 0.5; all 0 where
            nothing says so, and then every eighth weight may move.
    """

    def __init__(self, offsets: torch.Tensor) -> None:
        super().__init__()
        flat = offsets.reshape(-1)
        count = max(1, len(flat) // SHARE)
        if bool((flat == 0).all()):
            at = torch.arange(0, len(flat), SHARE)[:count]
        else:
            at = flat.abs().topk(count, sorted=False).indices.sort().values
        self.register_buffer("at", at)
        self.latent = nn.Parameter(flat[at].clone())
        self._temperature: float | None = None
        self._noise: torch.Generator | None = None

    def relax(self, heat: float | None, seed: int) -> None:
        """Draw moves at a temperature, of noise that `seed` alone decides; None takes the likeliest, as bytes do."""
        self._temperature = heat
        self._noise = None if heat is None else torch.Generator(self.latent.device).manual_seed(seed)

    def forward(self, integers: torch.Tensor) -> torch.Tensor:
        """`integers` as floats, with their moves: whole ones, or between -1 and 1 while relaxed."""
        move = self._whole() if self._temperature is None else self._drawn()
        moved: torch.Tensor = integers.float().reshape(-1).index_add(0, self.at, move).view(integers.shape)
        return moved

    def _whole(self) -> torch.Tensor:
        return self.latent + (self.latent.round() - self.latent).detach()

    def _drawn(self) -> torch.Tensor:
        assert self._temperature is not None
        choices = torch.arange(-1.0, 2.0, device=self.latent.device)
        logits = -_SHARPNESS * (self.latent[:, None] - choices).square()
        noise = -torch.empty_like(logits).exponential_(generator=self._noise).log()
        shares = ((logits + noise) / self._temperature).softmax(-1)
        move: torch.Tensor = shares[:, 2] - shares[:, 0]
        return move

    def settle(self) -> None:
        """No latent number leaves the three choices."""
        self.latent.data.clamp_(-1, 1)
