"""One step of a model of transformers with what it kept of the steps before, under whichever name it keeps it.

Attention keeps `past_key_values`, Mamba `cache_params`; which token comes next is left to the caller.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def step(model: Any, ids: torch.Tensor, kept: Any, **options: Any) -> tuple[torch.Tensor, Any]:
    """Logits [batch, length, vocabulary] of the tokens `ids` [batch, length], and what the next step needs.

    Args:
        model: a causal language model.
        ids: the tokens after those of earlier steps.
        kept: what the step before gave; None at first.
        options: passed on, such as `logits_to_keep`.
    """
    accepted = inspect.signature(model.forward).parameters
    name = "cache_params" if "cache_params" in accepted else "past_key_values"
    output = model(input_ids=ids, use_cache=True, **{name: kept}, **options)
    logits: torch.Tensor = output.logits
    return logits, getattr(output, name)
