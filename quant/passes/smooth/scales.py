"""Finds the scales of one fold: steps down the gradient of the objective, accepted where they help on other tokens.

Source: the idea is SmoothQuant's (arXiv 2211.10438), whose scales follow the largest activations and weights, half
and half; the search begins there (by mean squares) and goes on to what the rounding of both costs, block by block.
The objective is `objective`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.quant.passes.smooth.objective import Objective

STEPS = 40
_RATE = 0.06  # of Adam, on logarithms of scales, falling to zero
_FLOOR = 0.01  # of the mean square, added to each column's before the search begins
_LEAST_GAIN = 0.02  # a fold that helps less is none: what is smooth stays as it is


@dataclass(frozen=True)
class FoundScales:
    """What a search gives.

    Attributes:
        scales: of the source's channels: columns are multiplied with them.
        before: predicted divergence without them, on tokens that were not searched, nats a token.
        after: with them.
    """

    scales: torch.Tensor
    before: float
    after: float

    @property
    def helps(self) -> bool:
        """Whether there is anything to fold."""
        return self.after < (1 - _LEAST_GAIN) * self.before


def parts_of(tokens: int) -> tuple[slice, slice]:
    """Three quarters of the tokens to search on, and the others to judge on."""
    return slice(None, -(-3 * tokens // 4)), slice(-max(1, tokens // 4), None)


def find_scales(
    searched: Objective,
    held: Objective,
    channels: int,
    spread: Callable[[torch.Tensor], torch.Tensor],
    *,
    steps: int = STEPS,
    strength: float = 1.0,
) -> FoundScales:
    """The scales with the least predicted divergence.

    Args:
        searched: the group's objective on the tokens to search on; at least one matrix is in a quantised type.
        held: the same on the tokens to judge on.
        channels: of the source.
        spread: scales of the source's channels [channels] → of the sinks' columns [in].
        steps: how many; 0 for none.
        strength: share of the logarithms that is taken.
    """
    logs = _descend(searched, channels, spread, steps, searched.activations[0].squares.device) * strength
    with torch.no_grad():
        before = float(held.cost(spread(torch.ones_like(logs))))
        return FoundScales(logs.exp(), before, float(held.cost(spread(logs.exp()))))


def _descend(
    objective: Objective,
    channels: int,
    spread: Callable[[torch.Tensor], torch.Tensor],
    steps: int,
    device: torch.device,
) -> torch.Tensor:
    """Logarithms of scales, their mean zero."""
    unit = float(objective.cost(spread(torch.ones(channels, device=device)))) or 1.0
    logs = _beginning(objective, channels, spread, device) if steps else torch.zeros(channels, device=device)
    logs.requires_grad_(True)
    optimiser = torch.optim.Adam([logs], lr=_RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
    for _ in range(steps):
        optimiser.zero_grad()
        with torch.enable_grad():
            (objective.cost(spread(logs.exp())) / unit).backward()
        optimiser.step()
        falling.step()
    found = logs.detach()
    return found - found.mean()


def _beginning(
    objective: Objective, channels: int, spread: Callable[[torch.Tensor], torch.Tensor], device: torch.device
) -> torch.Tensor:
    """Logarithms of scales that take half of the inputs' unevenness: √ of each column's root mean square.

    Even inputs alone would make the weights uneven, and the columns with the largest inputs are not those whose
    errors cost least.
    """
    squares = objective.activations[0].squares.mean(0)
    wanted = 0.25 * (squares + _FLOOR * squares.mean() + 1e-30).log()
    # `spread` gives each channel's scale to some columns: its transpose sums over them.
    zeros = torch.zeros(channels, device=device, requires_grad=True)
    with torch.enable_grad():
        columns = spread(zeros)
    sums, counts = (
        torch.autograd.grad(columns, zeros, each, retain_graph=True)[0] for each in (wanted, torch.ones_like(wanted))
    )
    return sums / counts.clamp_min(1)
