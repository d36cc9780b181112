"""A conversation with a model: turns, answers again or onward, what is forgotten when the context is full.

It knows nothing of terminals; templates are `template`'s, evaluation the engine's.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgepack.edge.chat.answer import AnswerStream, Prompt
from edgepack.edge.chat.template import Message, stop_texts
from edgepack.edge.chat.transcript import read_transcript, write_transcript
from edgepack.edge.llama.engine import common_prefix
from edgepack.errors import EdgepackError, UsageError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from edgepack.edge.chat.answer import Answer
    from edgepack.edge.chat.template import ChatTemplate
    from edgepack.edge.chat.thinking import Piece
    from edgepack.edge.llama.engine import OpenModel
    from edgepack.edge.llama.options import SamplingOptions


@dataclass
class Conversation:
    """Messages so far, and what the next answer is made with.

    Attributes:
        model: an open model; only what differs from its KV cache is evaluated.
        template: turns messages into a prompt.
        sampling: how tokens are chosen.
        system: the system message, kept by `reset`; empty for none.
        max_tokens: of an answer; -1 is as many as the context holds.
        context_shift: forget the oldest turns when the context is full, instead of refusing.
        stops: texts that end an answer, besides those of the template.
        last: how the last answer went; None before the first, and after `reset` and `load`.
    """

    model: OpenModel
    template: ChatTemplate
    sampling: SamplingOptions
    system: str = ""
    max_tokens: int = -1
    context_shift: bool = False
    stops: Sequence[str] = ()
    turns: list[Message] = field(default_factory=list)
    forgotten: int = 0
    last: Answer | None = None
    _template_stops: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self._template_stops = stop_texts(self.template)

    @property
    def messages(self) -> list[Message]:
        """The system message and all turns."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return head + self.turns

    def reset(self) -> None:
        """Forget every turn; the system message stays."""
        self.turns.clear()
        self.last = None

    def tokens(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """The prompt of `messages` as token ids, with one BOS where the vocabulary asks for it."""
        text, add_special = self.text(messages, add_generation_prompt=add_generation_prompt)
        return self.model.tokenize(text, add_special=add_special, parse_special=True)

    def text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> tuple[str, bool]:
        """The prompt of `messages`, and whether BOS must still come before it where the vocabulary asks for it."""
        text = self.template.render(messages, add_generation_prompt=add_generation_prompt)
        return text, self._wants_bos(text)

    def _wants_bos(self, text: str) -> bool:
        bos = self.model.bos_text
        return not (bool(bos) and text.startswith(bos))

    @property
    def all_stops(self) -> list[str]:
        """Every text that ends an answer."""
        return [*self.stops, *self._template_stops]

    @property
    def used(self) -> int:
        """Tokens of the context that the last question and its answer took, with all that came before."""
        return len(self.last.ids) if self.last else 0

    def beginning(self) -> list[int]:
        """Token ids that every conversation with this system message begins with."""
        first, second = (self.tokens([*self.messages, {"role": "user", "content": text}]) for text in ("a", "Z"))
        return first[: max(common_prefix(first, second), 1)]

    def prompt_for(self, question: str) -> list[int]:
        """Token ids of the conversation with `question`, which does not become a turn.

        Raises:
            UsageError: it is longer than the context.
        """
        self.turns.append({"role": "user", "content": question})
        try:
            return self.fitting_prompt()
        finally:
            self.turns.pop()

    def answer(self, question: str) -> Generator[str, None, None]:
        """The answer to `question`, as `reply` gives it, without the thinking."""
        with closing(self.reply(question)) as pieces:
            for piece in pieces:
                if not piece.thinking:
                    yield piece.text

    def reply(self, question: str) -> Generator[Piece, None, None]:
        """Thinking and answer to `question`, piece by piece; question and answer become turns, cut short or not.

        Raises:
            UsageError: the conversation is longer than the context; both numbers are in the text, and the question
                is not kept.
            TemplateError: the template refuses the conversation.
            ModelRuntimeError: llama.cpp fails; a question to which nothing came is not kept.
        """
        kept = list(self.turns)
        self.turns.append({"role": "user", "content": question})
        try:
            yield from self._written(self._fitting())
        except EdgepackError:
            if self.turns[-1]["role"] == "user":
                self.turns = kept
            raise

    def again(self, question: str | None = None) -> Generator[Piece, None, None]:
        """Another answer to the last question, or to another question in its place; as `reply`.

        Where the new question fails, the old one and its answer stay.

        Raises:
            UsageError: there was no question yet, and as `reply`.
        """
        if not self.turns:
            raise UsageError("there is no question yet")
        kept, last = self.turns, self.last
        self.turns = kept[:-2]
        try:
            yield from self.reply(kept[-2]["content"] if question is None else question)
        except EdgepackError:
            if len(self.turns) < len(kept):
                self.turns, self.last = kept, last
            raise

    def onward(self) -> Generator[Piece, None, None]:
        """Go on inside the last answer; where the context was full, the oldest turns are forgotten first.

        Raises:
            UsageError: there is no answer, or it fills the context alone.
        """
        if not self.turns:
            raise UsageError("there is no answer yet")
        raw = self.last.raw if self.last else self.turns[-1]["content"]
        full = self.last is not None and self.last.ending == "context"
        prompt = self._fitting(raw, forget=full or self.context_shift)
        self.turns.pop()
        yield from self._written(prompt)

    def _written(self, prompt: Prompt) -> Generator[Piece, None, None]:
        """Let the model write after `prompt`; what comes becomes the last turn, however it ends."""
        stream = AnswerStream(self.model, prompt, self.sampling, self.max_tokens, self.all_stops)
        try:
            with closing(stream):
                yield from stream
        finally:
            result = stream.result
            if result.completion.tokens or prompt.raw or result.ending != "failed":
                self.last = result
                self.turns.append(result.turn)

    def fitting_prompt(self) -> list[int]:
        """The prompt of all turns; with `context_shift` the oldest question and answer go until a quarter is free.

        Raises:
            UsageError: it is longer than the context.
            TemplateError: the template refuses the conversation.
        """
        return list(self._fitting(forget=self.context_shift).ids)

    def _fitting(self, raw: str = "", *, forget: bool | None = None) -> Prompt:
        """The prompt of all turns, or up to what the last answer says already (`raw`)."""
        forget = self.context_shift if forget is None else forget
        room = self.model.n_ctx * 3 // 4 if forget else self.model.n_ctx - 1
        prompt = self._prompt(raw)
        while len(prompt.ids) > room and forget and len(self.turns) > 2:
            del self.turns[:2]
            self.forgotten += 1
            prompt = self._prompt(raw)
        if len(prompt.ids) > self.model.n_ctx - 1:
            raise UsageError(
                f"the conversation has {len(prompt.ids)} tokens, the context holds {self.model.n_ctx}: "
                "start anew, or run with a larger --ctx or with --ctx-shift"
            )
        return prompt

    def _prompt(self, raw: str) -> Prompt:
        """Of an answer that was evaluated its very tokens are taken: its text, tokenized anew, may give others."""
        messages = self.messages[:-1] if raw else self.messages
        rendered = self.template.render(messages)
        text = rendered + raw
        if self.last and text.startswith(self.last.text) and min(self.last.ids) >= 0:  # every token is known
            more = self._rest(text[len(self.last.text) :])
            if more is not None:
                return Prompt(rendered, raw, (*self.last.ids, *more))
        fresh = self.model.tokenize(text, add_special=self._wants_bos(text), parse_special=True)
        return Prompt(rendered, raw, tuple(fresh))

    def _rest(self, text: str) -> list[int] | None:
        """Tokens that say `text` behind others; None where the vocabulary cannot say it alone."""
        if not text:
            return []
        more = self.model.tokenize(text, add_special=False, parse_special=True)
        if self.model.detokenize(more[:1]) == " " != text[0]:  # some vocabularies put a space before every text
            more = more[1:]
        return more if self.model.detokenize(more, special=True) == text else None

    def transcript(self) -> str:
        """The conversation as JSON, one object with `messages`."""
        return write_transcript(self.messages)

    def load(self, transcript: str) -> None:
        """Go on from a transcript; its system message replaces this one.

        Raises:
            UsageError: it is no transcript; nothing has changed then.
        """
        self.system, self.turns = read_transcript(transcript)
        self.last = None
