"""Turns sampling options into llama.cpp's sampler chain; it evaluates nothing."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from edgepack.edge.llama.constraints.check import followed_constraint
from edgepack.edge.llama.log import runtime_log
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.edge.llama.options import SamplingOptions

_MIN_KEEP = 1  # tokens that no filter may remove


class SamplerChain:
    """A sampler chain of llama.cpp with an owner: `close` frees it.

    Args:
        vocabulary: `llama_vocab *`, for grammars.
        options: what the chain does.

    Raises:
        UsageError: the grammar or schema cannot be followed; the text says why.
    """

    def __init__(self, vocabulary: Any, options: SamplingOptions) -> None:
        from llama_cpp import llama_cpp as c

        self._c = c
        self._penalties: Any = None
        self.pointer = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
        try:
            self._fill(vocabulary, options)
        except BaseException:
            self.close()
            raise

    def _fill(self, vocabulary: Any, options: SamplingOptions) -> None:
        c = self._c
        grammar = followed_constraint("llama-cpp-python", options).grammar
        if grammar is not None:
            self._add(self._grammar(vocabulary, grammar))
        if options.repeat_last_n:
            penalties = (options.repeat_penalty, options.frequency_penalty, options.presence_penalty)
            n_vocab = c.llama_vocab_n_tokens(vocabulary)
            self._penalties = c.llama_sampler_init_penalties(n_vocab, options.repeat_last_n, *penalties)
            self._add(self._penalties)
        if options.temperature <= 0:
            self._add(c.llama_sampler_init_greedy())
            return
        self._add(c.llama_sampler_init_top_k(options.top_k))
        self._add(c.llama_sampler_init_typical(options.typical_p, _MIN_KEEP))
        self._add(c.llama_sampler_init_top_p(options.top_p, _MIN_KEEP))
        self._add(c.llama_sampler_init_min_p(options.min_p, _MIN_KEEP))
        self._add(c.llama_sampler_init_temp(options.temperature))
        self._add(c.llama_sampler_init_dist(options.seed if options.seed >= 0 else secrets.randbits(32)))

    def _grammar(self, vocabulary: Any, grammar: str) -> Any:
        with runtime_log().recording() as log:
            sampler = self._c.llama_sampler_init_grammar(vocabulary, grammar.encode(), b"root")
        if not sampler:
            raise UsageError(f"grammar: llama.cpp cannot parse it: {log.last_errors() or 'no rule named root?'}")
        return sampler

    def _add(self, sampler: Any) -> None:
        self._c.llama_sampler_chain_add(self.pointer, sampler)

    def remember(self, token_ids: Sequence[int]) -> None:
        """Count a prompt's tokens as recent, as llama.cpp's own programs do; a grammar does not see them."""
        if self._penalties is not None:
            for token in token_ids:
                self._c.llama_sampler_accept(self._penalties, token)

    def sample(self, context: Any) -> int:
        """The token chosen from the last logits of `context`; the chain remembers it."""
        return int(self._c.llama_sampler_sample(self.pointer, context, -1))

    def close(self) -> None:
        """Free the chain; a second call does nothing."""
        if self.pointer:
            self._c.llama_sampler_free(self.pointer)
            self.pointer = None
