"""What the original says at every position of the text, kept small: its most probable tokens, and the rest as one.

Divergence is measured against that. The original is run once, before anything is tuned, and is not in memory then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edgepack.errors import NumericError

if TYPE_CHECKING:
    from collections.abc import Callable

_LEAST = 1e-7  # probability of the rest, so that its logarithm is finite


@dataclass(frozen=True)
class Targets:
    """Of sequences of one length, on the CPU.

    Attributes:
        tokens: int32 [sequences, length, top], the most probable ones.
        logarithms: float16 [sequences, length, top], of their probabilities.
    """

    tokens: torch.Tensor
    logarithms: torch.Tensor

    def divergence(self, index: int, logits: torch.Tensor) -> torch.Tensor:
        """Mean Kullback-Leibler divergence of a sequence, original against `logits` [length, vocabulary], in nats.

        All tokens but the kept ones count as one, so it is at most that of the whole distributions.
        """
        return kept_divergence(self.tokens[index], self.logarithms[index], logits).mean()


def kept_divergence(tokens: torch.Tensor, logarithms: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Divergence at each position, in nats: float32 [...], of `logits` [..., vocabulary] against kept probabilities.

    Args:
        tokens: integers [..., top], on any device.
        logarithms: [..., top], of their probabilities; all other tokens are one.
        logits: of the model that learns.
    """
    logits = logits.float()
    original = logarithms.to(logits.device).float()
    ours = logits.gather(-1, tokens.to(logits.device).long()) - logits.logsumexp(-1, keepdim=True)
    kept = (original.exp() * (original - ours)).sum(-1)
    rest, our_rest = _rest(original), _rest(ours)
    return kept + rest * (rest.log() - our_rest.log())


def _rest(logarithms: torch.Tensor) -> torch.Tensor:
    return (1 - logarithms.exp().sum(-1)).clamp_min(_LEAST)


def empty_targets(sequences: int, length: int, top: int) -> Targets:
    """Room for `sequences`."""
    shape = (sequences, length, top)
    return Targets(torch.zeros(shape, dtype=torch.int32), torch.zeros(shape, dtype=torch.float16))


def keep_target(
    targets: Targets, index: int, tokens: torch.Tensor, logits: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Run the original over sequence `index`, int64 [length], and keep what it says; modifies `targets`.

    Args:
        targets: with room for it.
        index: of the sequence.
        tokens: the sequence.
        logits: the original: [1, length] → [1, length, vocabulary].

    Raises:
        NumericError: the original gives NaN or infinity.
    """
    with torch.no_grad():
        found = logits(tokens[None])[0].float().log_softmax(-1)
        if not torch.isfinite(found).all():
            raise NumericError(f"tune: the original's logits are not finite in sequence {index} of the text")
        best, places = found.topk(targets.tokens.shape[-1], -1)
        targets.tokens[index], targets.logarithms[index] = places.int().cpu(), best.half().cpu()
