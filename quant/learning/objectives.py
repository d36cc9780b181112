"""What a student is measured by: the text's next token, or what a teacher said of it.

Sources: distillation of logits, Hinton et al. (arXiv 1503.02531); relations of attention, MiniLMv2 (arXiv 2012.15828)
as BitDistill has them (arXiv 2510.13998). What the teacher said is read by `answers`; steps are `trainer`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn import functional

from edgepack.quant.learning.answers import LOGARITHMS, TOKENS, Asked
from edgepack.quant.learning.layers import KEYS, QUERIES, VALUES, LayerProbe
from edgepack.quant.tuning.targets import kept_divergence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

IGNORED = -100  # a label that is not learnt, as transformers has it


class Objective(Protocol):
    """What a batch costs: the mean over its examples, so that batches may be split."""

    def __call__(self, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A scalar in nats, with gradient; runs `model` once over `inputs["input_ids"]` [batch, length]."""
        ...


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of labels [batch, length] by logits of the position before; -100 is ignored.

    The mean over an example's labels, then over examples: one without labels costs nothing and counts all the same, so
    that a batch costs what the parts of it cost on average.
    """
    targets = labels[:, 1:]
    flat = logits[:, :-1].float().flatten(0, 1)
    each = functional.cross_entropy(flat, targets.flatten(), ignore_index=IGNORED, reduction="none")
    return (each.view(targets.shape).sum(1) / (targets != IGNORED).sum(1).clamp_min(1)).mean()


@dataclass(frozen=True)
class NextToken:
    """The text itself: the labels of examples."""

    def __call__(self, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """As `Objective`."""
        return next_token_loss(model(input_ids=inputs["input_ids"], use_cache=False).logits, inputs["labels"])


@dataclass(frozen=True)
class Distillation:
    """A teacher's answers: examples are `answers.AnsweredExamples` of the same `asked`.

    Attributes:
        asked: which layers are compared, if any.
        logits: weight of the divergence of the next token's distribution.
        text: weight of the text itself.
        relations: weight of attention relations of block `asked.relations`.
        hidden: weight of the outputs of blocks `asked.hidden`, as 1 - cosine, mean over them.
    """

    asked: Asked = field(default_factory=Asked)
    logits: float = 1.0
    text: float = 0.0
    relations: float = 0.0
    hidden: float = 0.0

    def __call__(self, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """As `Objective`."""
        with LayerProbe(model, self.asked.relations, self.asked.hidden) as probe:
            logits = model(input_ids=inputs["input_ids"], use_cache=False).logits
        found = probe.take()
        loss = self.logits * kept_divergence(inputs[TOKENS], inputs[LOGARITHMS], logits).mean()
        if self.text:
            loss = loss + self.text * next_token_loss(logits, inputs["labels"])
        if self.relations and self.asked.relations is not None:
            loss = loss + self.relations * _relations(model, found, inputs)
        if self.hidden and self.asked.hidden:
            keys = [f"hidden_{number}" for number in self.asked.hidden]
            far = [1 - functional.cosine_similarity(found[k].float(), inputs[k].float(), dim=-1).mean() for k in keys]
            loss = loss + self.hidden * torch.stack(far).mean()
        return loss


def _relations(model: nn.Module, found: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean divergence of the three relations, teacher's against student's."""
    config = model.config.get_text_config()
    queries = config.num_attention_heads
    heads = {QUERIES: queries, KEYS: getattr(config, "num_key_value_heads", None) or queries}
    heads[VALUES] = heads[KEYS]
    each = [relation_divergence(inputs[key].float(), found[key].float(), count) for key, count in heads.items()]
    return torch.stack(each).sum()


def relation_divergence(teacher: torch.Tensor, student: torch.Tensor, heads: int) -> torch.Tensor:
    """Mean divergence of softmax(A·Aᵀ/√d) of each head, A [batch, length, heads · d], in nats; no mask.

    Args:
        teacher: of the original.
        student: of the model that learns, of the same shape.
        heads: how many parts of the width are compared each for itself.
    """
    original, ours = (_relation(each, heads) for each in (teacher, student))
    return (original.exp() * (original - ours)).sum(-1).mean()


def _relation(states: torch.Tensor, heads: int) -> torch.Tensor:
    """Logarithms [batch, heads, length, length]."""
    split = states.unflatten(-1, (heads, -1)).transpose(1, 2)
    return (split @ split.transpose(-1, -2) / split.shape[-1] ** 0.5).log_softmax(-1)
