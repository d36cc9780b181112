"""The anthropic package."""

from __future__ import annotations

import anthropic
import pytest
from features import TOOL, arguments, run

url, model = arguments()
client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=120)
messages = [{"role": "user", "content": "hi"}]
short = {"model": model, "system": "be brief", "messages": messages, "max_tokens": 6, "extra_body": {"temperature": 0}}
tools = [{"name": "paint", "description": "paint it", "input_schema": TOOL["parameters"]}]


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def chat() -> None:
    answer = client.messages.create(**short)
    assert answer.model == model
    assert answer.stop_reason in ("max_tokens", "end_turn")
    assert answer.usage.output_tokens <= 6


def stream() -> None:
    whole = client.messages.create(**short)
    with client.messages.stream(**short) as told:
        assert "".join(told.text_stream) == text_of(whole)
        assert told.get_final_message().stop_reason == whole.stop_reason


def length() -> None:
    answer = client.messages.create(**{**short, "max_tokens": 3, "extra_body": {"ignore_eos": True}})
    assert answer.usage.output_tokens == 3
    assert answer.stop_reason == "max_tokens"


def system() -> None:
    without = {key: value for key, value in short.items() if key != "system"}
    count = client.messages.count_tokens
    assert (
        count(model=model, messages=messages).input_tokens
        < count(model=model, messages=messages, system="be brief").input_tokens
    )
    assert client.messages.create(**without).type == "message"


def tools_auto() -> None:
    answer = client.messages.create(**short, tools=tools)
    assert answer.stop_reason in ("max_tokens", "end_turn", "tool_use")


def tools_required() -> None:
    for choice in ({"type": "any"}, {"type": "tool", "name": "paint"}):
        asked = {**short, "max_tokens": 200, "tools": tools, "tool_choice": choice}
        answer = client.messages.create(**asked)
        assert answer.stop_reason == "tool_use"
        call = next(block for block in answer.content if block.type == "tool_use")
        assert call.name == "paint"
        assert isinstance(call.input["red"], bool)


def tool_results() -> None:
    asked = [
        *messages,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "paint", "input": {"red": True}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "painted"}]},
    ]
    answer = client.messages.create(**{**short, "messages": asked}, tools=tools)
    assert answer.usage.input_tokens > 0


def errors() -> None:
    for more in ({"max_tokens": 0}, {"stop_sequences": [3]}, {"messages": [{"role": "wizard", "content": "x"}]}):
        with pytest.raises(anthropic.BadRequestError) as error:
            client.messages.create(**{**short, **more})
        assert error.value.body["error"]["type"] == "invalid_request_error"


run(
    {
        "chat": chat, "stream": stream, "length": length, "system, developer": system, "tools auto": tools_auto,
        "tools required": tools_required, "tool results": tool_results, "errors": errors,
    }
)  # fmt: skip
