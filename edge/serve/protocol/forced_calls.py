"""A tool that must be called: `tool_choice` is `required`, or names one.

llama.cpp lets an answer begin with as much text as it likes before the call, so that a small model may never come to
it. Here the whole answer is the call: JSON of the tools' own schemas, which then becomes what clients expect.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_SHOWN = "You have these functions; answer with a JSON object of the name and the arguments of the one to call:\n"


def force_call(body: dict[str, Any], *, shown: bool) -> bool:
    """Make a chat's answer the call of a tool, where one is demanded; changes `body`.

    Args:
        body: a chat whose tools were checked.
        shown: whether the model's template shows it the tools; else a system message does.

    Returns:
        Whether a call is demanded.
    """
    choice = body.get("tool_choice")
    if not body.get("tools") or choice in (None, "auto", "none"):
        return False
    functions = [tool.get("function", tool) for tool in body["tools"]]
    if isinstance(choice, dict):
        wanted = choice.get("function", choice).get("name")
        functions = [function for function in functions if function["name"] == wanted]
    schemas = [_call_schema(function) for function in functions]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    body["response_format"] = {"type": "json_schema", "json_schema": {"name": "call", "schema": schema}}
    body["tool_choice"] = "none"
    if not shown:
        text = _SHOWN + json.dumps(functions, ensure_ascii=False)
        body["messages"] = _with_system(body["messages"], text)
        del body["tools"], body["tool_choice"]
    return True


def _call_schema(function: dict[str, Any]) -> dict[str, Any]:
    arguments = function.get("parameters") or {"type": "object"}
    properties = {"name": {"const": function["name"]}, "arguments": arguments}
    return {
        "type": "object",
        "properties": properties,
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _with_system(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """`messages` whose system message, the first, also says `text`."""
    first = messages[0]
    if first["role"] == "system" and isinstance(first["content"], str):
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def parsed_call(text: str) -> tuple[str, str] | None:
    """Name and arguments (a JSON text) of the call in an answer; None where the answer was cut inside it."""
    try:
        call = json.loads(text)
        return str(call["name"]), json.dumps(call["arguments"], ensure_ascii=False)
    except (ValueError, KeyError, TypeError):
        return None


async def with_calls(
    stream: AsyncIterator[tuple[str, dict[str, Any]]],
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Chunks of a chat whose text is a call → chunks that make the call, each choice's at its end."""
    texts: dict[int, str] = {}
    async for name, value in stream:
        choices = value.get("choices", [])
        choice = choices[0] if choices else {}
        index, delta = choice.get("index", 0), choice.get("delta", {})
        if (piece := delta.pop("content", None)) is not None:
            texts[index] = texts.get(index, "") + piece
        if choice.get("finish_reason") is not None and (call := parsed_call(texts.get(index, ""))) is not None:
            yield name, {**value, "choices": [{**choice, "finish_reason": None, "delta": _delta(*call)}]}
            choice["finish_reason"] = "tool_calls"
        if not choices or delta or choice.get("finish_reason") is not None or choice.get("logprobs"):
            yield name, value


def _delta(name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {
        "tool_calls": [{"index": 0, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}]
    }
