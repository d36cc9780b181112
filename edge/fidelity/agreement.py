"""How two models' predictions differ, token by token: pure functions on arrays.

What the numbers add up to over a text is `agreement_statistics`' business; where logits come from is `scorer`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CheckFailedError, NumericError

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOP = 5
_BLOCK_ELEMENTS = 1 << 18  # logits per block: two float64 temporaries of 2 MB each stay in the cache


@dataclass(frozen=True)
class TruncatedPredictions:
    """What a stored reference keeps of a prediction: its likeliest tokens and the mass of all others.

    Attributes:
        ids: int32 [n, k], token ids by falling log-probability.
        log_probabilities: float64 [n, k], natural logarithms, of `ids`.
        tail: float64 [n], the probability of every other token together, at least 0.
        target: float64 [n], log-probability of the token that follows in the text.
        vocabulary: number of tokens.
    """

    ids: NDArray[np.int32]
    log_probabilities: NDArray[np.float64]
    tail: NDArray[np.float64]
    target: NDArray[np.float64]
    vocabulary: int

    def __len__(self) -> int:
        """Number of positions."""
        return len(self.ids)


@dataclass(frozen=True)
class TokenMeasures:
    """What a position tells; every array is [n].

    Attributes:
        divergence: float64, KL(reference ‖ candidate) in nats; of the truncated distribution for a stored reference.
        reference_top, candidate_top: int64, the likeliest token; the smallest id among equals, as llama.cpp has it.
        in_top5: bool, the reference's likeliest token is among the candidate's five likeliest.
        reference_target, candidate_target: float64, log-probability of the token that follows in the text.
        targets: int64, that token.
        margin: float64, the reference's log-probability of its first choice less that of its second.
    """

    divergence: NDArray[np.float64]
    reference_top: NDArray[np.int64]
    candidate_top: NDArray[np.int64]
    in_top5: NDArray[np.bool_]
    reference_target: NDArray[np.float64]
    candidate_target: NDArray[np.float64]
    targets: NDArray[np.int64]
    margin: NDArray[np.float64]

    @property
    def agrees(self) -> NDArray[np.bool_]:
        """Where both models' first choice is the same token."""
        same: NDArray[np.bool_] = self.reference_top == self.candidate_top
        return same

    def __len__(self) -> int:
        """Number of positions."""
        return len(self.divergence)


def check_logits(logits: NDArray[np.float32], side: str, start: int) -> None:
    """Check that logits [n, vocabulary] define a distribution at every position.

    Args:
        logits: −inf is allowed (a token that cannot come), NaN and +inf are not, nor a row of −inf.
        side: whose logits, for the message.
        start: position of row 0 in the text, for the message.

    Raises:
        NumericError: with the first position and token at fault.
    """
    top = logits.max(axis=1)  # NaN propagates through max; +inf and a whole row of −inf show in it too
    bad = np.flatnonzero(~np.isfinite(top))
    if not len(bad):
        return
    row = int(bad[0])
    token = int(np.argmax(np.isnan(logits[row]) | np.isposinf(logits[row])))
    raise NumericError(
        f"{side}: logits must be finite numbers (or -inf), got {logits[row, token]} at position {start + row}, "
        f"token {token}"
    )


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Natural log-probabilities [n, vocabulary] in float64; does not modify its input."""
    return _softmax(logits)[0]


def _softmax(logits: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log-probabilities and probabilities in float64, at the price of one exponential an element."""
    log_p: NDArray[np.float64] = logits.astype(np.float64)
    log_p -= log_p.max(axis=1, keepdims=True)
    p = np.exp(log_p)
    total = p.sum(axis=1, keepdims=True)
    log_p -= np.log(total)
    p /= total
    return log_p, p


def compare(
    reference: NDArray[np.float32] | TruncatedPredictions,
    candidate: NDArray[np.float32],
    targets: NDArray[np.int32],
    start: int = 0,
) -> TokenMeasures:
    """Measure `candidate` against `reference` at n positions.

    Args:
        reference: logits [n, vocabulary], or what was kept of them.
        candidate: logits [n, vocabulary].
        targets: int [n], the token that follows each position in the text.
        start: position of row 0 in the text, for error messages.

    Raises:
        CheckFailedError: the vocabularies differ in size.
        NumericError: NaN or +inf among the logits.
    """
    size = reference.vocabulary if isinstance(reference, TruncatedPredictions) else reference.shape[1]
    if size != candidate.shape[1]:
        raise CheckFailedError(f"vocabularies must be equally large: reference {size}, candidate {candidate.shape[1]}")
    step = max(1, _BLOCK_ELEMENTS // size)
    blocks = []
    for row in range(0, len(candidate), step):
        rows = slice(row, row + step)
        check_logits(candidate[rows], "candidate", start + row)
        if isinstance(reference, TruncatedPredictions):
            blocks.append(_compare_truncated(_rows(reference, rows), candidate[rows], targets[rows]))
        else:
            check_logits(reference[rows], "reference", start + row)
            blocks.append(_compare_dense(reference[rows], candidate[rows], targets[rows]))
    return concatenate(blocks)


def concatenate(blocks: list[TokenMeasures]) -> TokenMeasures:
    """The measures of consecutive positions as one."""
    names = TokenMeasures.__dataclass_fields__
    return TokenMeasures(**{name: np.concatenate([getattr(block, name) for block in blocks]) for name in names})


def truncate(logits: NDArray[np.float32], targets: NDArray[np.int32], k: int) -> TruncatedPredictions:
    """Keep the `k` likeliest tokens of each row of logits [n, vocabulary]; does not modify its input."""
    k = min(k, logits.shape[1])
    log_p = log_softmax(logits)
    # A stable sort of the candidates keeps equal logits in the order of their ids, as argmax does.
    kept = np.sort(np.argpartition(-logits, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(log_p, kept, axis=1), axis=1, kind="stable")
    ids = np.take_along_axis(kept, order, axis=1)
    top = np.take_along_axis(log_p, ids, axis=1)
    rows = np.arange(len(logits))
    target = log_p[rows, targets]
    return TruncatedPredictions(ids.astype(np.int32), top, _tail(log_p, ids), target, logits.shape[1])


def _tail(log_p: NDArray[np.float64], ids: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Probability [n] of all tokens but `ids` [n, k]; summed, not 1 less the others: exactly 0 where none can come."""
    p = np.exp(log_p)
    np.put_along_axis(p, ids, 0.0, axis=1)
    total: NDArray[np.float64] = p.sum(axis=1)
    return total


def _rows(reference: TruncatedPredictions, rows: slice) -> TruncatedPredictions:
    return TruncatedPredictions(
        reference.ids[rows], reference.log_probabilities[rows], reference.tail[rows], reference.target[rows],
        reference.vocabulary,
    )  # fmt: skip


def _compare_dense(
    reference: NDArray[np.float32], candidate: NDArray[np.float32], targets: NDArray[np.int32]
) -> TokenMeasures:
    (log_p, p), log_q = _softmax(reference), log_softmax(candidate)
    rows = np.arange(len(targets))
    top = reference.argmax(axis=1)
    return TokenMeasures(
        divergence=_divergence(log_p, log_q, p),
        reference_top=top,
        candidate_top=candidate.argmax(axis=1),
        in_top5=_in_top(candidate, top),
        reference_target=log_p[rows, targets],
        candidate_target=log_q[rows, targets],
        targets=targets.astype(np.int64),
        margin=_margin(log_p),
    )


def _compare_truncated(
    reference: TruncatedPredictions, candidate: NDArray[np.float32], targets: NDArray[np.int32]
) -> TokenMeasures:
    log_q = log_softmax(candidate)
    rows = np.arange(len(targets))
    kept_q = np.take_along_axis(log_q, reference.ids, axis=1)
    with np.errstate(divide="ignore"):
        tails = np.log(np.stack([reference.tail, _tail(log_q, reference.ids)]))
    # The tail counts as one token: a lower bound of the whole divergence (log-sum inequality).
    log_p = np.concatenate([reference.log_probabilities, tails[0][:, None]], axis=1)
    top = reference.ids[:, 0].astype(np.int64)
    return TokenMeasures(
        divergence=_divergence(log_p, np.concatenate([kept_q, tails[1][:, None]], axis=1), np.exp(log_p)),
        reference_top=top,
        candidate_top=candidate.argmax(axis=1),
        in_top5=_in_top(candidate, top),
        reference_target=reference.target,
        candidate_target=log_q[rows, targets],
        targets=targets.astype(np.int64),
        margin=_margin(reference.log_probabilities),
    )


def _divergence(log_p: NDArray[np.float64], log_q: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σ p·(log p − log q) over the last axis, where 0·log 0 = 0; infinite when q excludes what p allows."""
    difference = np.subtract(log_p, log_q, out=np.zeros_like(log_p), where=log_p > -np.inf)
    # Rounding may leave −1e-16 where the distributions are equal; a divergence is never negative.
    total: NDArray[np.float64] = np.einsum("ij,ij->i", p, difference)
    return np.maximum(total, 0.0)


def _in_top(logits: NDArray[np.float32], tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether fewer than TOP logits of each row exceed that of the row's token."""
    own = np.take_along_axis(logits, tokens[:, None], axis=1)
    above: NDArray[np.int64] = (logits > own).sum(axis=1)
    return above < TOP


def _margin(log_p: NDArray[np.float64]) -> NDArray[np.float64]:
    """First less second log-probability of each row; infinite for a vocabulary of one."""
    if log_p.shape[1] < 2:
        return np.full(len(log_p), np.inf)
    first = log_p.argmax(axis=1)[:, None]
    others = log_p.copy()
    np.put_along_axis(others, first, -np.inf, axis=1)
    margin: NDArray[np.float64] = np.take_along_axis(log_p, first, axis=1)[:, 0] - others.max(axis=1)
    return margin
