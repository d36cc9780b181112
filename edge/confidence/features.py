"""What an answer's log-probabilities say of it, in six numbers; how they become a confidence is `calibrators`'.

Everything here is plain arithmetic of what both engines tell (`edge.llama.chances`), so that a file is judged on a
device by the very numbers that it was fitted with.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.edge.llama.chances import TokenChances

TOLD = 10  # likeliest tokens that are asked for at a position: OpenAI's protocol allows 20
NAMES = ("odds", "mean", "minimum", "entropy", "margin", "length")
_LARGEST_ODDS = 30.0  # e^-30 is below what float32 logits tell apart from certainty


@dataclass(frozen=True)
class Features:
    """One answer.

    Attributes:
        odds: log(p / (1 − p)) of the raw confidence p, −30 to 30.
        mean: of the tokens' log-probabilities, in nats.
        minimum: the least of them.
        entropy: in nats: of the distributions at its tokens, their mean (what is not among the likeliest counts as
            one more outcome); of a choice, that of the shares of all choices.
        margin: in nats: the least lead of a token over the best other one (below 0 where another was likelier); of a
            choice, its lead over the second.
        length: log(1 + tokens).
    """

    odds: float
    mean: float
    minimum: float
    entropy: float
    margin: float
    length: float

    @property
    def values(self) -> tuple[float, ...]:
        """The six numbers in the order of `NAMES`."""
        return astuple(self)

    @property
    def raw(self) -> float:
        """The raw confidence: what the log-probabilities alone say, 0 to 1."""
        return 1 / (1 + math.exp(-self.odds))


@dataclass(frozen=True)
class Observation:
    """An answer as calibrators see it.

    Attributes:
        features: of it.
        scores: log-likelihoods of all choices, in nats, where it was picked from some; else empty.
    """

    features: Features
    scores: tuple[float, ...] = ()


def observe_answer(tokens: Sequence[TokenChances]) -> Observation | None:
    """What the tokens of a written answer say; None where it has none.

    The raw confidence is the geometric mean of the tokens' probabilities, which is what clients take from logprobs.
    """
    if not tokens:
        return None
    likelihoods = [token.log_p for token in tokens]
    mean = math.fsum(likelihoods) / len(likelihoods)
    entropy = math.fsum(_entropy(token) for token in tokens) / len(tokens)
    margin = min(_margin(token) for token in tokens)
    return Observation(
        Features(_odds(mean), mean, min(likelihoods), entropy, margin, math.log1p(len(tokens))),
    )


def observe_choice(scores: Sequence[float], picked: Sequence[float]) -> Observation:
    """What the log-likelihoods of several choices say of the best of them.

    Args:
        scores: log p of each choice as a whole, in nats, at least two.
        picked: log p of each token of the best one.
    """
    shares = log_shares(scores)
    first, second = sorted(scores, reverse=True)[:2]
    entropy = -math.fsum(math.exp(share) * share for share in shares)
    mean = math.fsum(picked) / len(picked)
    features = Features(_odds(max(shares)), mean, min(picked), entropy, first - second, math.log1p(len(picked)))
    return Observation(features, tuple(scores))


def log_shares(scores: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Logarithms of the softmax of `scores` / `temperature`."""
    scaled = [score / temperature for score in scores]
    top = max(scaled)
    total = top + math.log(math.fsum(math.exp(value - top) for value in scaled))
    return [value - total for value in scaled]


def _odds(log_p: float) -> float:
    """log(p / (1 − p)) of log p."""
    if log_p >= -math.exp(-_LARGEST_ODDS):
        return _LARGEST_ODDS
    return max(-_LARGEST_ODDS, min(_LARGEST_ODDS, log_p - math.log(-math.expm1(log_p))))


def _entropy(token: TokenChances) -> float:
    told = [log_p for _token, log_p in token.top]
    rest = 1 - math.fsum(math.exp(log_p) for log_p in told)
    entropy = -math.fsum(math.exp(log_p) * log_p for log_p in told)
    return entropy - rest * math.log(rest) if rest > 0 else entropy


def _margin(token: TokenChances) -> float:
    others = [log_p for other, log_p in token.top if other != token.token]
    return token.log_p - max(others) if others else 0.0
