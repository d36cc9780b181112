"""Tokens after a prompt, one at a time: sampled, told, evaluated, until the model ends or the context is full.

Bringing a prompt into the KV cache is `runtime`'s, choosing among logits `sampling`'s.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from itertools import count
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from edgepack.edge.llama.chances import chances_of
from edgepack.edge.llama.engine import GeneratedToken
from edgepack.edge.llama.thread_pace import ThreadPace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edgepack.edge.llama.context import Context
    from edgepack.edge.llama.interrupt import AbortFlag
    from edgepack.edge.llama.sampling import SamplerChain
    from edgepack.edge.llama.vocabulary import Vocabulary


@runtime_checkable
class PreparedPrompt(Protocol):
    """A prompt that is more than token ids, such as one with images (`image.PicturePrompt`)."""

    def evaluate(self) -> None:
        """Bring the KV cache to it, its last logits ready to sample from."""
        ...


def continued(
    context: Context,
    vocabulary: Vocabulary,
    chain: SamplerChain,
    abort: AbortFlag,
    *,
    max_tokens: int,
    context_shift: bool,
    chances: int,
    adapt_threads: bool,
) -> Iterator[GeneratedToken]:
    """Tokens after those in the KV cache; the token that ends the turn is not among them.

    Args:
        context: its last logits are ready to sample from.
        vocabulary: of the model.
        chain: chooses tokens.
        abort: ends it after the token at hand.
        max_tokens: not more than these; -1 is as many as the context holds.
        context_shift: forget the older half when the context is full, and go on.
        chances: of how many candidates a token tells how likely they were; 0 for none.
        adapt_threads: whether the number of threads follows what is fastest.

    Raises:
        StoppedError: `abort` was set while a token was evaluated.
        UsageError: this kind of cache cannot be shifted.
    """
    decoder, token = getincrementaldecoder("utf-8")("replace"), -1
    pace = ThreadPace(context.threads, context.set_threads) if adapt_threads else None
    for _ in _turns(context, max_tokens, context_shift):
        if abort:
            return
        if context_shift and len(context.tokens) == context.size:
            context.shift()
        if token >= 0:
            context.evaluate(np.array([token], np.int32))
        token = chain.sample(context.pointer)
        if pace is not None:
            pace.token()
        if vocabulary.is_end(token):
            return
        told = chances_of(context.last_logits(vocabulary.size), token, chances) if chances else None
        yield GeneratedToken(token, decoder.decode(vocabulary.piece(token)), told)


def _turns(context: Context, max_tokens: int, context_shift: bool) -> Iterable[int]:
    """One for each token that may still be generated: the last one need not fit, as it is never evaluated."""
    if context_shift:
        return count() if max_tokens < 0 else range(max_tokens)
    left = context.size - len(context.tokens) + 1
    return range(left if max_tokens < 0 else min(max_tokens, left))
