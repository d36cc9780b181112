"""One answer in a conversation as it comes: its pieces, its tokens, how it ended. Turns are `conversation`'s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgepack.edge.chat.completion import Completion, TokenClock
from edgepack.edge.chat.stop_strings import until_stop
from edgepack.edge.chat.thinking import Piece, ThinkingParter, opened_by

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgepack.edge.chat.template import Message
    from edgepack.edge.llama.engine import GeneratedToken, OpenModel
    from edgepack.edge.llama.options import SamplingOptions

# The model ended its turn; it reached `max_tokens`; the context was full; somebody stopped it; llama.cpp failed.
Ending = Literal["end", "length", "context", "stopped", "failed"]


@dataclass(frozen=True)
class Prompt:
    """What a model is to continue.

    Attributes:
        rendered: the template's text, up to where the answer begins.
        raw: what the answer says already, as the model wrote it; empty for a new one.
        ids: both as token ids.
    """

    rendered: str
    raw: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What came.

    Attributes:
        content: the answer, without thinking.
        thinking: what the model thought first; mostly empty.
        raw: all of it as the model wrote it, marks included; what stood in the prompt already, too.
        ids: tokens of the prompt and of the answer.
        text: what `ids` say.
        ending: why it ended.
        completion: tokens and times.
    """

    content: str
    thinking: str
    raw: str
    ids: tuple[int, ...]
    text: str
    ending: Ending
    completion: Completion

    @property
    def turn(self) -> Message:
        """The answer as a message."""
        turn = {"role": "assistant", "content": self.content}
        return {**turn, "reasoning_content": self.thinking} if self.thinking else turn


class AnswerStream:
    """An answer as it comes: iterate over its pieces; close it to stop early; then `result` tells what came.

    Args:
        model: an open model; nothing else may use it until the answer has ended or is closed.
        prompt: what is continued.
        sampling: how tokens are chosen.
        max_tokens: not more than these; -1 is as many as the context holds.
        stops: texts that end the answer and are left out.
    """

    def __init__(
        self, model: OpenModel, prompt: Prompt, sampling: SamplingOptions, max_tokens: int, stops: Sequence[str]
    ) -> None:
        self._model = model
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._clock = TokenClock()
        self._tokens = model.generate(list(prompt.ids), sampling, max_tokens)
        self._stops = stops
        self._parter = ThinkingParter(opened_by(prompt.rendered))
        self._heard: list[tuple[int, str]] = []  # id and text of each token
        self._told: list[Piece] = self._parter.feed(prompt.raw) if prompt.raw else []
        self._exhausted = self._stopped_by_text = self._failed = False

    def __iter__(self) -> Iterator[Piece]:
        completed = False
        try:
            for text in until_stop(self._clock.texts(self._listened()), self._stops):
                for piece in self._parter.feed(text):
                    self._told.append(piece)
                    yield piece
            completed = True
        finally:
            self._tokens.close()
            self._stopped_by_text = completed and not self._exhausted
            rest = self._parter.end()
            self._told += rest
        yield from rest

    def _listened(self) -> Iterator[GeneratedToken]:
        try:
            for token in self._tokens:
                self._heard.append((token.id, token.text))
                yield token
        except GeneratorExit:
            raise
        except BaseException:
            self._failed = True
            raise
        self._exhausted = True

    def close(self) -> None:
        """End the answer where it is."""
        self._tokens.close()

    @property
    def result(self) -> Answer:
        """What has come."""
        content, thinking = (
            "".join(piece.text for piece in self._told if piece.thinking is wanted) for wanted in (False, True)
        )
        whole = self._whole_characters()
        raw = "".join(text for _id, text in whole)
        prompt, clock = self._prompt, self._clock
        ids = (*prompt.ids, *(token for token, _text in whole))
        completion = Completion(
            content, clock.tokens, len(prompt.ids), clock.first_token_seconds, clock.tokens_per_second
        )
        raw = prompt.raw + raw
        return Answer(content, thinking.strip(), raw, ids, prompt.rendered + raw, self._ending, completion)

    def _whole_characters(self) -> list[tuple[int, str]]:
        """The tokens without those at the end that only begin a character."""
        count = len(self._heard)
        while count and not self._heard[count - 1][1]:
            count -= 1
        return self._heard[:count]

    @property
    def _ending(self) -> Ending:
        if self._failed:
            return "failed"
        if self._stopped_by_text:
            return "end"
        if not self._exhausted or self._model.abort:
            return "stopped"
        if len(self._heard) == self._max_tokens:
            return "length"
        return "context" if len(self._prompt.ids) + len(self._heard) >= self._model.n_ctx else "end"
