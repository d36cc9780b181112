"""Conversations in files: a JSON object with `messages`, as OpenAI's requests have them. What is said is not judged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.edge.chat.template import Message


def write_transcript(messages: Sequence[Message]) -> str:
    """Messages as JSON, one object with `messages`."""
    return json.dumps({"messages": list(messages)}, ensure_ascii=False, indent=1) + "\n"


def read_transcript(text: str) -> tuple[str, list[Message]]:
    """(system message or "", turns) of a transcript.

    Raises:
        UsageError: it is no transcript: the text names the place.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"transcript: expected JSON: {error}") from None
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list):
        raise UsageError("transcript: expected an object with a list `messages`")
    checked = [_message(message, f"messages[{number}]") for number, message in enumerate(messages)]
    system = checked.pop(0)["content"] if checked and checked[0]["role"] == "system" else ""
    for number, turn in enumerate(checked):
        if turn["role"] != ("user", "assistant")[number % 2]:
            raise UsageError(f"transcript: turn {number + 1}: user and assistant take turns, got {turn['role']}")
    if len(checked) % 2:
        raise UsageError("transcript: the last question has no answer")
    return system, checked


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise UsageError(f"transcript: {where}: expected an object")
    role, content, thinking = message.get("role"), message.get("content"), message.get("reasoning_content")
    if role not in ("system", "user", "assistant"):
        raise UsageError(f"transcript: {where}.role: expected system, user or assistant, got {role!r}")
    if not isinstance(content, str):
        raise UsageError(f"transcript: {where}.content: expected a text")
    kept = {"role": str(role), "content": _whole(content)}
    return {**kept, "reasoning_content": _whole(thinking)} if isinstance(thinking, str) else kept


def _whole(text: str) -> str:
    """JSON may hold halves of surrogate pairs, which are no characters."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
