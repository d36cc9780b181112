"""Anthropic's messages ↔ OpenAI's chats: the request on its way to the engine, the stream on its way back.

llama.cpp's own translation leaves out the message's beginning where the first token is part of a character, notices
late that a client has left, and knows no `response_format`; all of these the chat has right.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from edgepack.edge.serve.protocol.confidence import FIELD

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_OWN = ("system", "messages", "tools", "tool_choice", "stop_sequences", "thinking", "metadata")


def to_chat(body: dict[str, Any]) -> dict[str, Any]:
    """A checked request of `/v1/messages` as one of `/v1/chat/completions`."""
    chat = {name: value for name, value in body.items() if name not in _OWN}
    system = _text(body.get("system", ""))
    chat["messages"] = [{"role": "system", "content": system}] if system else []
    for message in body["messages"]:
        chat["messages"] += _messages(message["role"], message["content"])
    if "stop_sequences" in body:
        chat["stop"] = body["stop_sequences"]
    if body.get("tools"):
        chat["tools"] = [{"type": "function", "function": _function(tool)} for tool in body["tools"]]
        _choose(chat, body.get("tool_choice"))
    thinking = body.get("thinking")
    if isinstance(thinking, dict):
        chat["chat_template_kwargs"] = {"enable_thinking": thinking.get("type") != "disabled"}
    return chat


def _text(content: Any) -> str:
    """The text of a content: its text blocks, joined."""
    if isinstance(content, str):
        return content
    return "".join(block.get("text", "") for block in content or [] if block.get("type") == "text")


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": tool["name"],
        "description": tool.get("description") or "",
        "parameters": tool.get("input_schema") or {"type": "object"},
    }


def _choose(chat: dict[str, Any], choice: Any) -> None:
    if not isinstance(choice, dict):
        return
    if choice.get("type") == "tool":
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    else:
        chat["tool_choice"] = _CHOICES.get(choice.get("type", "auto"), "auto")
    if choice.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False


def _messages(role: str, content: Any) -> list[dict[str, Any]]:
    """One message of Anthropic's is several of OpenAI's where it holds results of tools."""
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if role == "assistant":
        return [_assistant(content)]
    results = [
        {"role": "tool", "tool_call_id": block.get("tool_use_id", ""), "content": _text(block.get("content"))}
        for block in content
        if block.get("type") == "tool_result"
    ]
    parts = [part for block in content if (part := _part(block)) is not None]
    return [*results, {"role": role, "content": parts}] if parts else results


def _part(block: dict[str, Any]) -> dict[str, Any] | None:
    if block.get("type") == "text":
        return {"type": "text", "text": block["text"]}
    if block.get("type") == "image":
        source = block["source"]
        address = source.get("url") or f"data:{source.get('media_type', 'image/png')};base64,{source['data']}"
        return {"type": "image_url", "image_url": {"url": address}}
    return None


def _assistant(content: list[dict[str, Any]]) -> dict[str, Any]:
    calls = [
        {
            "id": block.get("id", ""),
            "type": "function",
            "function": {"name": str(block.get("name", "")), "arguments": json.dumps(block.get("input") or {})},
        }
        for block in content
        if block.get("type") == "tool_use"
    ]
    message: dict[str, Any] = {"role": "assistant", "content": _text(content)}
    if thoughts := "".join(block.get("thinking", "") for block in content if block.get("type") == "thinking"):
        message["reasoning_content"] = thoughts
    return {**message, "tool_calls": calls} if calls else message


async def to_messages(
    stream: AsyncIterator[tuple[str, dict[str, Any]]], model: str
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """A chat's chunks, those that tell of the prompt's progress among them → Anthropic's events."""
    blocks, usage, reason, begun = _Blocks(), {"input_tokens": 0, "output_tokens": 0}, "stop", False
    verdict: dict[str, Any] | None = None
    async for _name, value in stream:
        progress = value.get("prompt_progress")
        if not begun:
            begun, usage["input_tokens"] = True, (progress or {}).get("total", 0)
            yield _event("message_start", message=_start(value, model, usage))
        if told := value.get("usage"):
            usage = {"input_tokens": told["prompt_tokens"], "output_tokens": told["completion_tokens"]}
        for choice in () if progress else value.get("choices", ()):
            reason = choice.get("finish_reason") or reason
            verdict = choice.get(FIELD, verdict)
            for event in blocks.add(choice.get("delta", {})):
                yield event
    for event in blocks.end():
        yield event
    delta = {"stop_reason": _REASONS.get(reason, "end_turn"), "stop_sequence": None}
    more = {} if verdict is None else {FIELD: verdict}
    yield _event("message_delta", delta=delta, usage=usage, **more)
    yield _event("message_stop")


def _event(kind: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return kind, {"type": kind, **more}


def _start(chunk: dict[str, Any], model: str, usage: dict[str, int]) -> dict[str, Any]:
    return {
        "id": str(chunk.get("id", "")).replace("chatcmpl-", "msg_"),
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": model,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": dict(usage),
    }


class _Blocks:
    """The blocks of a message: one is open at a time, another kind of piece opens the next."""

    def __init__(self) -> None:
        self._index = -1
        self._kind = ""

    def add(self, delta: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """Events of a chat's delta."""
        found = []
        if thought := delta.get("reasoning_content"):
            found += self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            found.append(self._grow({"type": "thinking_delta", "thinking": thought}))
        if text := delta.get("content"):
            found += self._open("text", {"type": "text", "text": ""})
            found.append(self._grow({"type": "text_delta", "text": text}))
        for call in delta.get("tool_calls") or []:
            found += self._call(call)
        return found

    def _call(self, call: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        function = call.get("function", {})
        block = {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": {}}
        found = self._open(f"call {call.get('index', 0)}", block)
        if piece := function.get("arguments"):
            found.append(self._grow({"type": "input_json_delta", "partial_json": piece}))
        return found

    def _open(self, kind: str, block: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        if kind == self._kind:
            return []
        found = self.end()
        self._index, self._kind = self._index + 1, kind
        return [*found, _event("content_block_start", index=self._index, content_block=block)]

    def _grow(self, delta: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return _event("content_block_delta", index=self._index, delta=delta)

    def end(self) -> list[tuple[str, dict[str, Any]]]:
        """The event that closes the open block, where there is one."""
        if not self._kind:
            return []
        self._kind = ""
        return [_event("content_block_stop", index=self._index)]
