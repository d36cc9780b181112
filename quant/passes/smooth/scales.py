"""Finds the scales of one fold: steps down the gradient of the objective, accepted where they help on other tokens.

Source: the idea is SmoothQuant's (arXiv 2211.10438), whose scales follow the largest activations and weights; here
they follow what the rounding of both costs, block by block. The objective is `objective`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edgepack.quant.passes.smooth.objective import objective_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgepack.quant.passes.smooth.objective import Objective, Sink

STEPS = 80
_RATE = 0.08  # of Adam, on logarithms of scales, falling to zero
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


def find_scales(
    sinks: Sequence[Sink],
    channels: int,
    spread: Callable[[torch.Tensor], torch.Tensor],
    *,
    steps: int = STEPS,
    strength: float = 1.0,
) -> FoundScales:
    """The scales with the least predicted divergence; searched on three quarters of the tokens, judged on the rest.

    Args:
        sinks: matrices that read one input; at least one in a quantised type.
        channels: of the source.
        spread: scales of the source's channels [channels] → of the sinks' columns [in].
        steps: how many; 0 for none.
        strength: share of the logarithms that is taken.
    """
    searched, held = (objective_of(sinks, part) for part in (slice(None, -(-3 * _tokens(sinks) // 4)), _last(sinks)))
    logs = _descend(searched, channels, spread, steps, sinks[0].weight.device) * strength
    with torch.no_grad():
        before = float(held.cost(spread(torch.ones_like(logs))))
        return FoundScales(logs.exp(), before, float(held.cost(spread(logs.exp()))))


def _tokens(sinks: Sequence[Sink]) -> int:
    return len(sinks[0].sample.inputs)


def _last(sinks: Sequence[Sink]) -> slice:
    return slice(-max(1, _tokens(sinks) // 4), None)


def _descend(
    objective: Objective,
    channels: int,
    spread: Callable[[torch.Tensor], torch.Tensor],
    steps: int,
    device: torch.device,
) -> torch.Tensor:
    """Logarithms of scales, their mean zero."""
    logs = torch.zeros(channels, device=device, requires_grad=True)
    optimiser = torch.optim.Adam([logs], lr=_RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
    unit = float(objective.cost(spread(torch.ones_like(logs.detach())))) or 1.0
    for _ in range(steps):
        optimiser.zero_grad()
        with torch.enable_grad():
            (objective.cost(spread(logs.exp())) / unit).backward()
        optimiser.step()
        falling.step()
    found = logs.detach()
    return found - found.mean()
