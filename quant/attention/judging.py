"""What a model says with another cache, or another model says, against what it says by itself.

It knows nothing of what the other is; text and tokens are the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    Answer = Callable[[torch.Tensor], torch.Tensor]
    """Logits [tokens, vocabulary] of one sequence of tokens [tokens]."""


@dataclass(frozen=True)
class Judgement:
    """Over all positions of all sequences.

    Attributes:
        kl: mean divergence from the original, nats.
        top1: share of positions with the original's most probable token.
        positions: how many.
    """

    kl: float
    top1: float
    positions: int


def divergences(wanted: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """KL(wanted ‖ found) of logits [tokens, vocabulary], in nats [tokens]."""
    first, second = wanted.log_softmax(-1), found.log_softmax(-1)
    return (first.exp() * (first - second)).sum(-1)


def judge(original: Answer, other: Answer, tokens: torch.Tensor, scored: slice = slice(None)) -> Judgement:
    """How far `other` is from `original` on tokens [sequences, length], at the scored positions of each sequence."""
    total, same, positions = 0.0, 0, 0
    with torch.inference_mode():
        for sequence in tokens:
            wanted, found = original(sequence)[scored], other(sequence)[scored]
            total += float(divergences(wanted, found).double().sum())
            same += int((wanted.argmax(-1) == found.argmax(-1)).sum())
            positions += len(wanted)
    return Judgement(total / positions, same / positions, positions)


def answers(model: Any, cache: Callable[[], Any] | None = None) -> Answer:
    """Of a transformers model, in float32; with a new cache for every sequence where `cache` makes one."""

    def logits(sequence: torch.Tensor) -> torch.Tensor:
        held = None if cache is None else cache()
        batch = sequence[None].to(model.device)
        found: torch.Tensor = model(input_ids=batch, past_key_values=held, use_cache=held is not None).logits
        return found[0].float()

    return logits
