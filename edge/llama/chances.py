"""How likely the model itself held each token of an answer, before any sampler: values that both engines can give.

What follows from them, such as a confidence, is `edge.confidence`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

LEAST_LOG_P = -100.0  # nats; llama.cpp writes the logarithm of a probability that is 0 as the least float


@dataclass(frozen=True)
class TokenChances:
    """One token of an answer among those that could have stood there.

    Attributes:
        token: its id.
        log_p: natural logarithm of its probability: the softmax of the model's own logits, at temperature 1.
        top: the likeliest tokens there, (id, log p), the likeliest first; the token itself may be among them.
    """

    token: int
    log_p: float
    top: tuple[tuple[int, float], ...]


def chances_of(logits: NDArray[np.float32], token: int, count: int) -> TokenChances:
    """The chances of `token` at a position.

    Args:
        logits: float32 [vocabulary].
        token: what stands there.
        count: how many of the likeliest tokens are told, as many as the vocabulary has at most.
    """
    exact = logits.astype(np.float64)
    top = exact.max()
    log_p = exact - (top + np.log(np.exp(exact - top).sum()))
    count = min(count, len(log_p))
    first = np.argpartition(-log_p, count - 1)[:count]
    ordered = first[np.argsort(-log_p[first], kind="stable")]
    told = tuple((int(index), max(float(log_p[index]), LEAST_LOG_P)) for index in ordered)
    return TokenChances(token, max(float(log_p[token]), LEAST_LOG_P), told)


def told_chances(told: Mapping[str, Any]) -> TokenChances:
    """The chances in one of the objects that llama.cpp's server tells (`logprobs.content[i]`)."""
    top = tuple((int(one["id"]), max(float(one["logprob"]), LEAST_LOG_P)) for one in told.get("top_logprobs") or ())
    return TokenChances(int(told["id"]), max(float(told["logprob"]), LEAST_LOG_P), top)
