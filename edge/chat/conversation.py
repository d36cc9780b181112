"""A conversation with a model: turns, what is forgotten when the context is full, transcripts.

It knows nothing of terminals; templates are `chat_template`'s, evaluation `runtime`'s.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgepack.edge.chat.stop_strings import until_stop
from edgepack.edge.chat.template import Message, stop_texts
from edgepack.edge.llama.engine import common_prefix
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from edgepack.edge.chat.template import ChatTemplate
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

    def tokens(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """The prompt of `messages` as token ids, with one BOS where the vocabulary asks for it."""
        text, add_special = self.text(messages, add_generation_prompt=add_generation_prompt)
        return self.model.tokenize(text, add_special=add_special, parse_special=True)

    def text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> tuple[str, bool]:
        """The prompt of `messages`, and whether BOS must still come before it where the vocabulary asks for it."""
        text = self.template.render(messages, add_generation_prompt=add_generation_prompt)
        bos = self.model.bos_text
        return text, not (bool(bos) and text.startswith(bos))

    @property
    def all_stops(self) -> list[str]:
        """Every text that ends an answer."""
        return [*self.stops, *self._template_stops]

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
        """The answer to `question`, piece by piece; question and answer become turns, cut short or not.

        Raises:
            UsageError: the conversation is longer than the context; both numbers are in the text, and the question
                is not kept.
            TemplateError: the template refuses the conversation.
        """
        self.turns.append({"role": "user", "content": question})
        try:
            prompt = self.fitting_prompt()
        except BaseException:
            self.turns.pop()
            raise
        pieces: list[str] = []
        tokens = self.model.generate(prompt, self.sampling, self.max_tokens)
        try:
            for piece in until_stop((token.text for token in tokens), self.all_stops):
                pieces.append(piece)
                yield piece
        finally:
            tokens.close()
            self.turns.append({"role": "assistant", "content": "".join(pieces)})

    def fitting_prompt(self) -> list[int]:
        """The prompt of all turns; with `context_shift` the oldest question and answer go until a quarter is free.

        Raises:
            UsageError: it is longer than the context.
            TemplateError: the template refuses the conversation.
        """
        prompt = self.tokens(self.messages)
        room = self.model.n_ctx * 3 // 4 if self.context_shift else self.model.n_ctx - 1
        while len(prompt) > room and self.context_shift and len(self.turns) > 2:
            del self.turns[:2]
            self.forgotten += 1
            prompt = self.tokens(self.messages)
        if len(prompt) > self.model.n_ctx - 1:
            raise UsageError(
                f"the conversation has {len(prompt)} tokens, the context holds {self.model.n_ctx}: "
                "start anew, or run with a larger --ctx or with --ctx-shift"
            )
        return prompt

    def transcript(self) -> str:
        """The conversation as JSON, one object with `messages`."""
        return json.dumps({"messages": self.messages}, ensure_ascii=False, indent=1) + "\n"
