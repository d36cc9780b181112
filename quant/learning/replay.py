"""New text learnt while old text is kept: next tokens of examples with labels, and what the model itself said before.

Without the second part a small adapter forgets what its documents do not speak of. What it said is kept by `answers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from edgepack.quant.learning.answers import LOGARITHMS, TOKENS
from edgepack.quant.learning.lengths import lengths_of
from edgepack.quant.learning.objectives import IGNORED, next_token_loss
from edgepack.quant.tuning.targets import kept_divergence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
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

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example: int64 [examples]."""
        parts = [self.new] if self.old is None else [self.new, self.old]
        return np.concatenate([lengths_of(each) for each in parts])

    @property
    def heaviest(self) -> dict[str, torch.Tensor]:
        """The longest, which costs what both kinds do: a batch may hold both."""
        example = self[int(self.lengths.argmax())]
        return example if self.old is None else {**example, KEPT: torch.ones(len(example["input_ids"]))}

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
    """Next tokens of labelled examples, and the divergence from what was said of the others, mean over examples.

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
        each = (divergence * kept).sum(1) / kept.sum(1).clamp_min(1)
        return loss + self.weight * each.mean()
