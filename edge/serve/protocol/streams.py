"""What the engine streams → what a client gets: the same stream without the engine's own signs, or one whole answer.

The engine is always asked for a stream, also where the client wants a whole answer: only while it writes does it
notice that nobody listens any more.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

from edgepack.edge.serve.protocol.confidence import FIELD
from edgepack.edge.serve.protocol.errors import RequestError
from edgepack.edge.serve.protocol.events import Event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from edgepack.edge.serve.protocol.errors import Secrets

_DONE = "[DONE]"


class Whole(Protocol):
    """Puts an answer together from its events."""

    def add(self, name: str, value: dict[str, Any]) -> None:
        """One event's name and data."""
        ...

    def result(self) -> dict[str, Any]:
        """The answer."""
        ...


async def values(
    stream: AsyncIterator[Event], secrets: Secrets, *, progress: bool = False
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Name and data of each event that is the client's business.

    Args:
        stream: the engine's.
        secrets: that no message may show.
        progress: keep those that tell how far the prompt has been read (llama.cpp's `return_progress`).

    Raises:
        RequestError: the engine gave up in the middle.
    """
    async for event in stream:
        if event.data == _DONE:
            return
        value = json.loads(event.data)
        if "error" in value and not value.get("choices"):
            told = value["error"]
            message = str(told.get("message", told)) if isinstance(told, dict) else str(told)
            raise RequestError(secrets.hide(message), status=500)
        if progress or value.get("prompt_progress") is None:
            yield event.name, value


async def one_usage(
    stream: AsyncIterator[tuple[str, dict[str, Any]]], *, kept: bool
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """OpenAI's chunks: how many tokens were used is told once, at the end, and only where it is to be `kept`.

    Each of several answers (`n`) comes with a chunk of its own that counts its tokens.
    """
    last: dict[str, Any] | None = None
    async for name, value in stream:
        if value.get("object") != "chat.completion.chunk" or value.get("choices"):
            yield name, value
            continue
        last = value if last is None else {**value, "usage": _sum(last.get("usage"), value.get("usage"))}
    if last is not None and kept:
        yield "", last


async def encoded(stream: AsyncIterator[tuple[str, dict[str, Any]]]) -> AsyncIterator[Event]:
    """Events of names and values."""
    async for name, value in stream:
        yield Event(json.dumps(value, ensure_ascii=False), name)


def _sum(first: Any, second: Any, *, another_prompt: bool = False) -> Any:
    """Use of two answers: a prompt counts once, however many answers it has."""
    if not first or not second:
        return first or second
    completion = first["completion_tokens"] + second["completion_tokens"]
    prompt = first["prompt_tokens"] + (second["prompt_tokens"] if another_prompt else 0)
    total = prompt + completion
    return {**second, "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


class WholeCompletion:
    """A text completion or a chat, of its chunks; choices in the order of their index.

    Args:
        chat: whether it is one.
        answers: choices that a prompt has; several prompts have as many each, and each counts its tokens.
    """

    def __init__(self, *, chat: bool, answers: int = 1) -> None:
        self._chat, self._answers = chat, answers
        self._counted: set[int] = set()  # prompts whose tokens are in the sum
        self._head: dict[str, Any] = {}
        self._usage: Any = None
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, name: str, value: dict[str, Any]) -> None:
        """As `Whole.add`."""
        del name
        if value.get("usage"):
            numbers = {choice["index"] // self._answers for choice in value.get("choices", [])} - self._counted
            self._counted |= numbers
            self._usage = _sum(self._usage, value["usage"], another_prompt=not self._chat and bool(numbers))
        self._head |= {key: item for key, item in value.items() if key not in ("choices", "usage", "object")}
        for choice in value.get("choices", []):
            self._add_choice(choice)

    def _add_choice(self, choice: dict[str, Any]) -> None:
        index = choice["index"]
        start: dict[str, Any] = {"index": index, "finish_reason": None, "logprobs": None}
        start |= {"message": {"role": "assistant", "content": None}} if self._chat else {"text": ""}
        found = self._choices.setdefault(index, start)
        found["finish_reason"] = choice.get("finish_reason") or found["finish_reason"]
        if FIELD in choice:
            found[FIELD] = choice[FIELD]
        if (told := choice.get("logprobs")) is not None:
            found["logprobs"] = {"content": (found["logprobs"] or {}).get("content", []) + told["content"]}
        if self._chat:
            _add_delta(found["message"], choice.get("delta", {}))
        else:
            found["text"] += choice.get("text") or ""

    def result(self) -> dict[str, Any]:
        """As `Whole.result`."""
        kind = "chat.completion" if self._chat else "text_completion"
        choices = [self._choices[index] for index in sorted(self._choices)]
        for choice in choices:
            if self._chat and choice["message"]["content"] is None and not choice["message"].get("tool_calls"):
                choice["message"]["content"] = ""
        return {**self._head, "object": kind, "choices": choices, "usage": self._usage}


def _add_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name in ("content", "reasoning_content", "refusal"):
        if delta.get(name) is not None:
            message[name] = (message.get(name) or "") + delta[name]
    calls = message.setdefault("tool_calls", []) if delta.get("tool_calls") else []
    for part in delta.get("tool_calls") or []:
        while len(calls) <= part["index"]:
            calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        call, function = calls[part["index"]], part.get("function", {})
        call["id"] = part.get("id") or call["id"]
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""


class WholeResponse:
    """OpenAI's newer form: the last event carries the whole of it."""

    def __init__(self) -> None:
        self._result: dict[str, Any] = {}

    def add(self, name: str, value: dict[str, Any]) -> None:
        """As `Whole.add`."""
        del name
        if value.get("type") in ("response.completed", "response.incomplete", "response.failed"):
            self._result = value["response"]

    def result(self) -> dict[str, Any]:
        """As `Whole.result`."""
        return self._result


class WholeMessage:
    """Anthropic's form: blocks that begin, grow and end."""

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._arguments: dict[int, str] = {}

    def add(self, name: str, value: dict[str, Any]) -> None:
        """As `Whole.add`."""
        del name
        kind = value.get("type")
        if kind == "message_start":
            self._message = {**value["message"], "content": []}
        elif kind == "content_block_start":
            self._message["content"].append(dict(value["content_block"]))
        elif kind == "content_block_delta":
            self._grow(value["index"], value["delta"])
        elif kind == "message_delta":
            self._message |= value["delta"]
            if FIELD in value:
                self._message[FIELD] = value[FIELD]
            self._message["usage"] = {**self._message.get("usage", {}), **value.get("usage", {})}

    def _grow(self, index: int, delta: dict[str, Any]) -> None:
        block = self._message["content"][index]
        if delta["type"] == "input_json_delta":
            self._arguments[index] = self._arguments.get(index, "") + delta["partial_json"]
            return
        name = delta["type"].removesuffix("_delta")
        block[name] = block.get(name, "") + delta[name]

    def result(self) -> dict[str, Any]:
        """As `Whole.result`."""
        for index, text in self._arguments.items():
            self._message["content"][index]["input"] = _arguments(text)
        return self._message


def _arguments(text: str) -> Any:
    """Of a tool's call; none where the answer was cut inside them."""
    try:
        return json.loads(text or "{}")
    except ValueError:
        return {}
