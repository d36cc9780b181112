"""One answer with its clock: a prompt in, text and timings out. Chat templates are left to `chat`."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.edge.chat.stop_strings import until_stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from edgepack.edge.llama.chances import TokenChances
    from edgepack.edge.llama.engine import GeneratedToken, OpenModel
    from edgepack.edge.llama.options import SamplingOptions


@dataclass(frozen=True)
class Completion:
    """What came of a prompt.

    Attributes:
        text: the answer without the prompt.
        tokens: generated tokens.
        prompt_tokens: tokens of the prompt, BOS included.
        first_token_seconds: from the call to the first token, prompt evaluation included.
        tokens_per_second: of generation after the first token; 0.0 where fewer than two came.
        chances: how likely each token of the text was, where `SamplingOptions.chances` asks for it.
    """

    text: str
    tokens: int
    prompt_tokens: int
    first_token_seconds: float
    tokens_per_second: float
    chances: tuple[TokenChances, ...] = ()


class CompletionStream:
    """An answer as it comes: iterate over its pieces of text; close it to stop early.

    Args:
        model: an open model; nothing else may use it until the answer has ended or is closed.
        prompt: text (BOS is put in front where the vocabulary asks for it), or token ids as they stand.
        sampling: how tokens are chosen.
        max_tokens: not more than these; -1 is as many as the context holds.
        stops: texts that end the answer and are left out.
        context_shift: cut the middle out of a prompt that is too long, and forget when the context is full.

    Raises:
        UsageError: by the first step, when the prompt is longer than the context (both numbers are in the text).
    """

    def __init__(
        self,
        model: OpenModel,
        prompt: str | Sequence[int],
        sampling: SamplingOptions,
        max_tokens: int = -1,
        *,
        stops: Sequence[str] = (),
        context_shift: bool = False,
    ) -> None:
        self._clock = TokenClock()
        ids = model.tokenize(prompt) if isinstance(prompt, str) else prompt
        self._ids = without_middle(list(ids), model.n_ctx) if context_shift else ids
        self._tokens = model.generate(self._ids, sampling, max_tokens, context_shift=context_shift)
        self._pieces = until_stop(self._clock.texts(self._tokens), stops)
        self._told: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            piece = next(self._pieces)
        except StopIteration:
            self.close()
            raise
        self._told.append(piece)
        return piece

    def close(self) -> None:
        """End the answer where it is."""
        self._tokens.close()

    def chances_within(self, length: int) -> tuple[TokenChances, ...]:
        """The chances of the tokens that begin within the first `length` characters of what came."""
        return self._clock.chances_within(length)

    @property
    def result(self) -> Completion:
        """What has come so far, and how fast; of the whole answer once it has ended."""
        clock = self._clock
        text = "".join(self._told)
        return Completion(
            text, clock.tokens, len(self._ids), clock.first_token_seconds, clock.tokens_per_second,
            clock.chances_within(len(text)),
        )  # fmt: skip


def complete(
    model: OpenModel,
    prompt: str | Sequence[int],
    sampling: SamplingOptions,
    max_tokens: int,
    show: Callable[[str], object] = lambda _text: None,
    *,
    stops: Sequence[str] = (),
    context_shift: bool = False,
) -> Completion:
    """Continue `prompt` to its end; `show` is called with each piece of text, the rest is as `CompletionStream` has it.

    Raises:
        UsageError: the prompt is longer than the context (both numbers are in the text).
    """
    stream = CompletionStream(model, prompt, sampling, max_tokens, stops=stops, context_shift=context_shift)
    with closing(stream):
        for piece in stream:
            show(piece)
    return stream.result


def without_middle(ids: list[int], n_ctx: int) -> list[int]:
    """`ids`, or their beginning (an eighth of the context) and end, which together fill half of the context."""
    if len(ids) < n_ctx:
        return ids
    head, tail = n_ctx // 8, n_ctx // 2 - n_ctx // 8
    return ids[:head] + ids[-tail:]


class TokenClock:
    """Counts tokens and notes when the first and the last came."""

    def __init__(self) -> None:
        self.tokens = 0
        self._chances: list[tuple[int, TokenChances]] = []  # with the place where the token's text begins
        self._length = 0
        self._start = self._first = self._last = time.perf_counter()

    def texts(self, tokens: Iterable[GeneratedToken]) -> Iterator[str]:
        """The tokens' texts as they come."""
        for token in tokens:
            self._last = time.perf_counter()
            self._first = self._last if not self.tokens else self._first
            self.tokens += 1
            if token.chances is not None:
                self._chances.append((self._length, token.chances))
            self._length += len(token.text)
            yield token.text

    def chances_within(self, length: int) -> tuple[TokenChances, ...]:
        """The chances of the tokens that begin within the first `length` characters: those of a text that was cut."""
        return tuple(chances for start, chances in self._chances if start < length)

    @property
    def first_token_seconds(self) -> float:
        """From the beginning to the first token, prompt evaluation included."""
        return self._first - self._start

    @property
    def tokens_per_second(self) -> float:
        """Of generation after the first token; 0.0 where fewer than two came."""
        return (self.tokens - 1) / (self._last - self._first) if self._last > self._first else 0.0
