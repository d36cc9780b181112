"""Conversations in OpenAI's and Anthropic's words: roles, parts of messages, tools; what a text model cannot take.

Pictures and sounds come inside the request (`data:`): this server fetches nothing and opens no file for a client.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

from edgepack.edge.llama.image_file import picture_of
from edgepack.edge.serve.protocol import fields
from edgepack.edge.serve.protocol.errors import RequestError
from edgepack.edge.serve.protocol.schema import check_schema
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from edgepack.edge.serve.protocol.facts import ServedFacts

_ROLES = ("system", "developer", "user", "assistant", "tool")
_MOST_TOOLS = 128
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_PICTURE_PARTS = ("image_url", "input_image", "image")
_SOUND_PARTS = ("input_audio",)


def check_messages(body: dict[str, Any], facts: ServedFacts) -> None:
    """`messages` of a chat; `developer` becomes `system`, which every template knows. Changes `body`.

    Raises:
        RequestError: names the message, and the part of it.
    """
    if not facts.has_template:
        why = "the model has no chat template; serve it with --template NAME, or use /v1/completions"
        raise RequestError(f"messages: {why}", "messages")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise fields.wrong("messages", "a list of objects with role and content", messages)
    body["messages"] = [_message(item, f"messages[{index}]", facts) for index, item in enumerate(messages)]


def _message(message: Any, where: str, facts: ServedFacts) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise fields.wrong(where, "an object with role and content", message)
    role = message.get("role")
    if role not in _ROLES:
        raise fields.wrong(f"{where}.role", f"one of {', '.join(_ROLES)}", role)
    kept: dict[str, Any] = {name: value for name, value in message.items() if value is not None}
    return _completed(kept, role, where, facts)


def _completed(message: dict[str, Any], role: str, where: str, facts: ServedFacts) -> dict[str, Any]:
    if role == "developer":
        message["role"] = "system"
    calls = message.get("tool_calls")
    if calls is not None:
        _check_calls(calls, f"{where}.tool_calls")
    if role == "assistant" and "content" not in message:
        if not calls and not message.get("reasoning_content"):
            raise RequestError(f"{where}.content: expected a text, or tool_calls", f"{where}.content")
        message["content"] = ""
    check_content(message.get("content"), f"{where}.content", facts)
    return message


def _check_calls(calls: Any, where: str) -> None:
    if not isinstance(calls, list):
        raise fields.wrong(where, "a list", calls)
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        named = isinstance(function, dict) and isinstance(function.get("name"), str)
        if not named or not isinstance(function.get("arguments"), str):  # type: ignore[union-attr]
            raise fields.wrong(f"{where}[{index}]", "a function with a name and its arguments as a JSON text", call)


def check_content(content: Any, where: str, facts: ServedFacts) -> None:
    """The content of a message: a text, or parts of it."""
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise fields.wrong(where, "a text or a list of parts", content)
    for index, part in enumerate(content):
        _check_part(part, f"{where}[{index}]", facts)


def _check_part(part: Any, where: str, facts: ServedFacts) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXT_PARTS:
        _check_text(part, where, "refusal" if kind == "refusal" else "text")
    elif kind in _PICTURE_PARTS:
        if not facts.vision:
            raise RequestError(f"{where}: the model takes no images", where)
        _check_inside(_address(part), where)
    elif kind in _SOUND_PARTS:
        if not facts.audio:
            raise RequestError(f"{where}: the model takes no sound", where)
    elif kind == "tool_result":
        if part.get("content") is not None:
            check_content(part["content"], f"{where}.content", facts)
    elif kind == "thinking":
        _check_text(part, where, "thinking")
    elif kind not in ("tool_use", "redacted_thinking"):
        raise fields.wrong(f"{where}.type", "text, image_url or input_audio", kind)


def _check_text(part: dict[str, Any], where: str, name: str) -> None:
    if not isinstance(part.get(name), str):
        raise fields.wrong(f"{where}.{name}", "a text", part.get(name))


def _address(part: dict[str, Any]) -> Any:
    """Where a picture is, in any of the three protocols' words."""
    source = part.get("source")
    if isinstance(source, dict):
        coded = source.get("data")
        inside = source.get("type") == "base64" and isinstance(coded, str)
        return f"data:;base64,{coded}" if inside else source.get("url")
    given = part.get("image_url")
    return given.get("url") if isinstance(given, dict) else given


def _check_inside(address: Any, where: str) -> None:
    """The picture must come with the request, and be one of a size that may be decoded."""
    if not isinstance(address, str):
        raise RequestError(f"{where}: expected an image", where)
    if not address.startswith("data:"):
        raise RequestError(f"{where}: expected a data: URL; this server opens no address for a client", where)
    head, _comma, coded = address.partition(",")
    if not head.endswith(";base64"):
        raise RequestError(f"{where}: expected a data: URL in base64", where)
    try:
        picture_of(base64.b64decode(coded, validate=True), "of the request")
    except binascii.Error:
        raise RequestError(f"{where}: expected a data: URL in base64", where) from None
    except UsageError as error:
        raise RequestError(f"{where}: {error}", where) from None


def check_tools(body: dict[str, Any], facts: ServedFacts) -> None:
    """`tools` and `tool_choice` in any of the three protocols' words; changes `body`."""
    for old in ("functions", "function_call"):
        fields.refused(body, old, "expected tools and tool_choice, which have taken its place")
        body.pop(old, None)
    tools, choice = body.get("tools"), body.get("tool_choice")
    if not tools:
        body.pop("tools", None)
        body.pop("tool_choice", None)
        if choice not in (None, "none", "auto", {"type": "auto"}, {"type": "none"}):
            raise RequestError("tool_choice: expected only with tools", "tool_choice")
        return
    if not isinstance(tools, list) or len(tools) > _MOST_TOOLS:
        raise fields.wrong("tools", f"a list of at most {_MOST_TOOLS}", tools)
    names = [_check_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    _check_choice(choice, names)
    if not facts.takes_tools and choice in (None, "auto", {"type": "auto"}):
        why = "the model's chat template shows it none; tool_choice: required makes it call one"
        raise RequestError(f"tools: {why}", "tools")


def _check_tool(tool: Any, where: str) -> str:
    """The tool's name."""
    inner = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise fields.wrong(where, "a function with a name", tool)
    for name in ("parameters", "input_schema"):
        if inner.get(name) is not None:
            check_schema(inner[name], f"{where}.{name}")
    return str(inner["name"])


def _check_choice(choice: Any, names: list[str]) -> None:
    if choice is None or choice in ("auto", "none", "required"):
        return
    if isinstance(choice, dict):
        if choice.get("type") in ("auto", "any", "none"):
            return
        inner = choice.get("function", choice)
        name = inner.get("name") if isinstance(inner, dict) else None
        if name in names:
            return
        raise fields.wrong("tool_choice", f"one of the tools {', '.join(names)}", name)
    raise fields.wrong("tool_choice", "auto, none, required or a tool", choice)
