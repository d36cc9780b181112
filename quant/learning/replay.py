"""New text learnt while old text is kept: next tokens of examples with labels, and what the model itself said before.

Without the second part a small adapter forgets what its documents do not speak of. What it said is kept by `answers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from edgepack.quant.learning.answers import LOGARITHMS, TOKENS
from edgepack.quant.learning.objectives import IGNORED, next_token_loss
from edgepack.quant.tuning.targets import kept_divergence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

KEPT = "kept"  # key of an example: 1 at each token whose prediction is to stay what it was


class MixedExamples(Dataset):  # type: ignore[misc]  # torch is not followed by mypy
    """New examples, then old ones, all with the same keys.

    Args:
        new: examples with labels.
        old: `AnsweredExamples`, or None for none.
    """

    def __init__(self, new: Any, old: Any) -> None:
        self.new, self.old = new, old
        self._top = 1 if old is None else int(old[0][TOKENS].shape[-1])

    def __len__(self) -> int:
        return len(self.new) + (0 if self.old is None else len(self.old))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index < len(self.new):
            example = self.new[index]
            count = len(example["input_ids"])
            return {
                "input_ids": example["input_ids"], "labels": example["labels"],
                TOKENS: torch.zeros(count, self._top, dtype=torch.int32),
                LOGARITHMS: torch.zeros(count, self._top, dtype=torch.float16), KEPT: torch.zeros(count),
            }  # fmt: skip
        example = self.old[index - len(self.new)]
        tokens = example["input_ids"]
        return {
            "input_ids": tokens, "labels": torch.full_like(tokens, IGNORED), TOKENS: example[TOKENS],
            LOGARITHMS: example[LOGARITHMS], KEPT: torch.ones(len(tokens)),
        }  # fmt: skip


@dataclass(frozen=True)
class TextAndReplay:
    """Next tokens of labelled examples, and the divergence from what was said of the others.

    Attributes:
        weight: of the divergence, whose unit is nats a token as that of the text.
    """

    weight: float = 1.0

    def __call__(self, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """As `Objective`."""
        logits = model(input_ids=inputs["input_ids"], use_cache=False).logits
        loss = next_token_loss(logits, inputs["labels"])
        kept = inputs[KEPT]
        if not kept.any():
            return loss
        divergence = kept_divergence(inputs[TOKENS], inputs[LOGARITHMS], logits)
        return loss + self.weight * (divergence * kept).sum() / kept.sum()
