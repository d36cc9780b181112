"""OpenAI's newer form, `/v1/responses`: its request as a chat, and a chat's chunks as its events.

llama.cpp has both, but its events lack the numbers by which OpenAI's client puts an answer together.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from edgepack.edge.serve.protocol.confidence import FIELD

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_OWN = (
    "input",
    "instructions",
    "text",
    "tools",
    "tool_choice",
    "max_output_tokens",
    "reasoning",
    "store",
    "truncation",
)
_KINDS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "text"}


def to_chat(body: dict[str, Any]) -> dict[str, Any]:
    """A checked request of `/v1/responses` as one of `/v1/chat/completions`."""
    chat = {name: value for name, value in body.items() if name not in _OWN}
    instructions = body.get("instructions")
    chat["messages"] = [{"role": "system", "content": instructions}] if instructions else []
    given = body["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    for item in items:
        _add_item(chat["messages"], item)
    if "max_output_tokens" in body:
        chat["max_tokens"] = body["max_output_tokens"]
    if body.get("tools"):
        chat["tools"] = [{"type": "function", "function": _function(tool)} for tool in body["tools"]]
        choice = body.get("tool_choice")
        if choice is not None:
            named = isinstance(choice, dict) and choice.get("name")
            chat["tool_choice"] = {"type": "function", "function": {"name": named}} if named else choice
    reasoning = body.get("reasoning")
    if isinstance(reasoning, dict) and isinstance(reasoning.get("effort"), str):
        chat["reasoning_effort"] = reasoning["effort"]
    return chat


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    inner = tool.get("function", tool)
    return {name: inner[name] for name in ("name", "description", "parameters") if inner.get(name) is not None}


def _add_item(messages: list[dict[str, Any]], item: dict[str, Any]) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        messages.append({"role": item["role"], "content": _content(item["content"])})
    elif kind == "function_call_output":
        output = item.get("output", "")
        content = output if isinstance(output, str) else _content(output)
        messages.append({"role": "tool", "tool_call_id": item.get("call_id", ""), "content": content})
    elif kind == "function_call":
        function = {"name": str(item.get("name", "")), "arguments": str(item.get("arguments", "{}"))}
        call = {"id": item.get("call_id", ""), "type": "function", "function": function}
        last = messages[-1] if messages else {}
        if last.get("role") == "assistant":
            last.setdefault("tool_calls", []).append(call)
        else:
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})


def _content(content: Any) -> Any:
    """Parts in the chat's words; text alone becomes a text."""
    if isinstance(content, str):
        return content
    parts = [_part(part) for part in content]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] in _KINDS:
        return {"type": "text", "text": part.get("text", part.get("refusal", ""))}
    address = part.get("image_url")
    return {"type": "image_url", "image_url": {"url": address.get("url") if isinstance(address, dict) else address}}


async def to_responses(
    stream: AsyncIterator[tuple[str, dict[str, Any]]], model: str, body: dict[str, Any]
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """A chat's chunks → the events of a response, numbered."""
    response, number = _Response(model, body), 0
    async for kind, event in _events(stream, response):
        yield kind, {"type": kind, "sequence_number": number, **event}
        number += 1


async def _events(
    stream: AsyncIterator[tuple[str, dict[str, Any]]], response: _Response
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    yield "response.created", {"response": response.now()}
    yield "response.in_progress", {"response": response.now()}
    async for _name, value in stream:
        if told := value.get("usage"):
            response.use(told)
        for choice in value.get("choices", ()):
            response.reason = choice.get("finish_reason") or response.reason
            response.verdict = choice.get(FIELD, response.verdict)
            for event in response.add(choice.get("delta", {})):
                yield event
    for event in response.close():
        yield event
    status = "incomplete" if response.reason == "length" else "completed"
    yield f"response.{status}", {"response": response.now(status)}


class _Response:
    """A response that grows: its items, one of them open at a time."""

    def __init__(self, model: str, body: dict[str, Any]) -> None:
        self.reason = "stop"
        self.verdict: dict[str, Any] | None = None
        self._items: list[dict[str, Any]] = []
        self._kind = ""
        self._usage: dict[str, Any] | None = None
        self._head = {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "instructions": body.get("instructions"),
            "metadata": body.get("metadata") or {},
            "parallel_tool_calls": bool(body.get("parallel_tool_calls", True)),
            "temperature": body.get("temperature"),
            "top_p": body.get("top_p"),
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": body.get("tools") or [],
            "error": None,
        }

    def now(self, status: str = "in_progress") -> dict[str, Any]:
        """The response as it is now."""
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        output = [{**item} for item in self._items]
        more = {} if self.verdict is None else {FIELD: self.verdict}
        return {
            **self._head, "status": status, "output": output, "usage": self._usage, "incomplete_details": cut, **more,
        }  # fmt: skip

    def use(self, told: dict[str, Any]) -> None:
        """How many tokens were used."""
        cached = (told.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        self._usage = {
            "input_tokens": told["prompt_tokens"],
            "output_tokens": told["completion_tokens"],
            "total_tokens": told["total_tokens"],
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens_details": {"reasoning_tokens": 0},
        }

    def add(self, delta: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """Events of a chat's delta."""
        found = []
        if thought := delta.get("reasoning_content"):
            found += self._open("reasoning")
            self._items[-1]["content"][0]["text"] += thought
            found.append(("response.reasoning_text.delta", {**self._where(), "content_index": 0, "delta": thought}))
        if text := delta.get("content"):
            found += self._open("message")
            self._items[-1]["content"][0]["text"] += text
            more = {**self._where(), "content_index": 0, "delta": text, "logprobs": []}
            found.append(("response.output_text.delta", more))
        for call in delta.get("tool_calls") or []:
            found += self._call(call)
        return found

    def _call(self, call: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        function = call.get("function", {})
        found = self._open(f"call {call.get('index', 0)}", function.get("name") or "", call.get("id") or "")
        if piece := function.get("arguments"):
            self._items[-1]["arguments"] += piece
            found.append(("response.function_call_arguments.delta", {**self._where(), "delta": piece}))
        return found

    def _where(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    def _open(self, kind: str, name: str = "", call_id: str = "") -> list[tuple[str, dict[str, Any]]]:
        if kind == self._kind:
            return []
        found, self._kind = self.close(), kind
        self._items.append(_item(kind, name, call_id))
        added = {**self._items[-1]}
        if "content" in added:
            added["content"] = []
        found.append(("response.output_item.added", {"output_index": len(self._items) - 1, "item": added}))
        if kind == "message":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            found.append(("response.content_part.added", {**self._where(), "content_index": 0, "part": part}))
        return found

    def close(self) -> list[tuple[str, dict[str, Any]]]:
        """Events that end the open item, where there is one."""
        if not self._kind:
            return []
        item, where, kind = self._items[-1], self._where(), self._kind
        item["status"], self._kind = "completed", ""
        found: list[tuple[str, dict[str, Any]]] = []
        if kind == "message":
            part = {**item["content"][0]}
            more = {**where, "content_index": 0}
            found.append(("response.output_text.done", {**more, "text": part["text"], "logprobs": []}))
            found.append(("response.content_part.done", {**more, "part": part}))
        elif kind == "reasoning":
            text = item["content"][0]["text"]
            found.append(("response.reasoning_text.done", {**where, "content_index": 0, "text": text}))
        else:
            more = {"name": item["name"], "arguments": item["arguments"]}
            found.append(("response.function_call_arguments.done", {**where, **more}))
        found.append(("response.output_item.done", {"output_index": where["output_index"], "item": {**item}}))
        return found


def _item(kind: str, name: str, call_id: str) -> dict[str, Any]:
    number = secrets.token_hex(12)
    if kind == "message":
        text = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return {"id": f"msg_{number}", "type": kind, "role": "assistant", "status": "in_progress", "content": [text]}
    if kind == "reasoning":
        text = {"type": "reasoning_text", "text": ""}
        return {"id": f"rs_{number}", "type": kind, "status": "in_progress", "summary": [], "content": [text]}
    call = {"call_id": call_id or f"call_{number}", "name": name, "arguments": ""}
    return {"id": f"fc_{number}", "type": "function_call", "status": "in_progress", **call}
