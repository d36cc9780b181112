"""The paths that generate text: each one's request on its way to the engine, and the stream on its way back.

All but plain completions are chats to the engine; which protocol a client speaks is known here and in `protocol`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.edge.serve.protocol import anthropic, requests, responses
from edgepack.edge.serve.protocol.confidence import Confident
from edgepack.edge.serve.protocol.events import Event, events
from edgepack.edge.serve.protocol.forced_calls import force_call, with_calls
from edgepack.edge.serve.protocol.schema import schema_as_grammar
from edgepack.edge.serve.protocol.streams import (
    Whole,
    WholeCompletion,
    WholeMessage,
    WholeResponse,
    encoded,
    one_usage,
    values,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from edgepack.edge.serve.protocol.errors import Secrets
    from edgepack.edge.serve.protocol.facts import ServedFacts
    from edgepack.edge.serve.protocol.requests import Check

    Stream = AsyncIterator[tuple[str, dict[str, Any]]]

_CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Generation:
    """A path that generates text.

    Attributes:
        check: of its body.
        whole: puts a whole answer to a body together.
        to_chat: its body as a chat's; None where it is asked as it stands.
        done: whether its stream ends with `[DONE]`.
    """

    check: Check
    whole: Callable[[dict[str, Any]], Whole]
    to_chat: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    done: bool = False


GENERATIONS = {
    _CHAT: Generation(requests.check_chat, lambda _body: WholeCompletion(chat=True), done=True),
    "/v1/completions": Generation(
        requests.check_completion, lambda body: WholeCompletion(chat=False, answers=body.get("n", 1)), done=True
    ),
    "/v1/responses": Generation(requests.check_response, lambda _body: WholeResponse(), responses.to_chat),
    "/v1/messages": Generation(requests.check_anthropic, lambda _body: WholeMessage(), anthropic.to_chat),
}


class Asked:
    """One request to generate text, checked.

    Args:
        path: that was asked, one of `GENERATIONS`.
        body: what the client sent; changed.
        facts: of the model.

    Raises:
        RequestError: it cannot be honoured.
    """

    def __init__(self, path: str, body: dict[str, Any], facts: ServedFacts) -> None:
        kind = GENERATIONS[path]
        kind.check(body, facts)
        self.streamed = bool(body.get("stream"))
        self.done = kind.done
        self.whole = kind.whole(body)
        self.engine_path = path if kind.to_chat is None else _CHAT
        self.body = body if kind.to_chat is None else kind.to_chat(body)
        self._path, self._facts, self._given = path, facts, body
        self._usage = not self.streamed or bool((body.get("stream_options") or {}).get("include_usage"))
        self._forced = self.engine_path == _CHAT and force_call(self.body, shown=facts.takes_tools)
        if self._forced:
            schema_as_grammar(self.body, facts)
        chat = self.engine_path == _CHAT
        fitted = facts.confidence.get("chat" if chat else "text")
        self._confident = None if fitted is None else Confident(self.body, fitted, chat=chat)
        # A client may ask for them too (the chat page does), as llama.cpp's own server tells them.
        self._progress = path == "/v1/messages" or (self.streamed and self.body.get("return_progress") is True)
        # Each batch of the prompt is told of, so that the engine notices a client that left: it writes to nobody.
        self.body |= {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True}

    def answer(self, pieces: AsyncIterator[bytes], secrets: Secrets) -> Stream:
        """Names and values of the events that the client gets, of the bytes that the engine sends."""
        told = values(events(pieces), secrets, progress=self._progress)
        if self._confident is not None:
            told = self._confident.judged(told)
        if self._forced:
            told = with_calls(told)
        if self._path == "/v1/messages":
            return anthropic.to_messages(told, self._facts.name)
        if self._path == "/v1/responses":
            return responses.to_responses(told, self._facts.name, self._given)
        return one_usage(told, kept=self._usage)

    def events(self, pieces: AsyncIterator[bytes], secrets: Secrets) -> AsyncIterator[Event]:
        """The same, as they stand in a stream."""
        return encoded(self.answer(pieces, secrets))
