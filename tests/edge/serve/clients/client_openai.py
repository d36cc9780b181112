"""The openai package."""

from __future__ import annotations

import json

import numpy as np
import openai
import pytest
from features import SCHEMA, TOOL, arguments, run
from pydantic import BaseModel

url, model = arguments()
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
short = {"model": model, "messages": messages, "max_completion_tokens": 6, "temperature": 0}
tools = [{"type": "function", "function": TOOL}]


class Painted(BaseModel):
    color: bool
    large: bool


def chat() -> None:
    answer = client.chat.completions.create(**short)
    assert answer.model == model
    assert answer.usage.completion_tokens <= 6
    assert answer.choices[0].finish_reason in ("length", "stop")


def stream() -> None:
    whole = client.chat.completions.create(**short).choices[0].message.content
    chunks = list(client.chat.completions.create(**short, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert all(chunk.usage is None for chunk in chunks)


def usage_in_stream() -> None:
    chunks = list(client.chat.completions.create(**short, stream=True, stream_options={"include_usage": True}, n=2))
    told = [chunk.usage for chunk in chunks if chunk.usage]
    assert len(told) == 1
    assert not chunks[-1].choices
    assert told[0].total_tokens == told[0].prompt_tokens + told[0].completion_tokens


def max_tokens() -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        arguments = {key: value for key, value in short.items() if key != "max_completion_tokens"}
        answer = client.chat.completions.create(**arguments, **{name: 3}, extra_body={"ignore_eos": True})
        assert answer.usage.completion_tokens == 3
        assert answer.choices[0].finish_reason == "length"


def developer() -> None:
    asked = [{"role": "developer", "content": "be brief"}, messages[1]]
    answer = client.chat.completions.create(**{**short, "messages": asked})
    assert answer.usage.prompt_tokens == client.chat.completions.create(**short).usage.prompt_tokens


def json_schema() -> None:
    answer = client.chat.completions.parse(model=model, messages=messages, response_format=Painted, max_tokens=100)
    assert isinstance(answer.choices[0].message.parsed, Painted)
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(**{**short, "max_completion_tokens": 100}, response_format=form)
    assert json.loads(answer.choices[0].message.content)["color"] in ("red", "blue")


def tools_auto() -> None:
    answer = client.chat.completions.create(**short, tools=tools, tool_choice="auto")
    assert answer.choices[0].finish_reason in ("length", "stop", "tool_calls")
    assert answer.usage.prompt_tokens > client.chat.completions.create(**short).usage.prompt_tokens


def tools_required() -> None:
    for choice in ("required", {"type": "function", "function": {"name": "paint"}}):
        asked = {**short, "max_completion_tokens": 200, "tools": tools, "tool_choice": choice}
        answer = client.chat.completions.create(**asked).choices[0]
        assert answer.finish_reason == "tool_calls"
        call = answer.message.tool_calls[0].function
        assert call.name == "paint"
        assert isinstance(json.loads(call.arguments)["red"], bool)
        chunks = list(client.chat.completions.create(**asked, stream=True))
        parts = [call for c in chunks if c.choices for call in c.choices[0].delta.tool_calls or []]
        assert json.loads("".join(part.function.arguments or "" for part in parts)) == json.loads(call.arguments)


def tool_results() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "paint", "arguments": '{"red": true}'}}
    asked = [
        *messages,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "painted"},
    ]
    answer = client.chat.completions.create(**{**short, "messages": asked}, tools=tools)
    assert answer.usage.prompt_tokens > 50


def logprobs() -> None:
    answer = client.chat.completions.create(**short, logprobs=True, top_logprobs=3)
    told = answer.choices[0].logprobs.content
    assert 0 < len(told) <= answer.usage.completion_tokens  # one a piece of text that is whole
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in told)


def several() -> None:
    answer = client.chat.completions.create(**short, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 1  # greedy
    assert answer.usage.completion_tokens >= 3


def completions() -> None:
    answer = client.completions.create(model=model, prompt=["hi", "ho"], max_tokens=3, temperature=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    whole = client.completions.create(model=model, prompt="hi", max_tokens=3, temperature=0).choices[0].text
    chunks = client.completions.create(model=model, prompt="hi", max_tokens=3, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole


def embeddings() -> None:
    answer = client.embeddings.create(model=model, input=["hello", "world"])
    vectors = np.array([item.embedding for item in answer.data])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    plain = client.embeddings.create(model=model, input="hello", encoding_format="float").data[0].embedding
    np.testing.assert_allclose(plain, vectors[0], atol=1e-5)


def dimensions() -> None:
    full = np.array(client.embeddings.create(model=model, input="hello").data[0].embedding)
    short = np.array(client.embeddings.create(model=model, input="hello", dimensions=8).data[0].embedding)
    np.testing.assert_allclose(short, full[:8] / np.linalg.norm(full[:8]), atol=1e-5)


def responses() -> None:
    asked = {"model": model, "input": "hi", "instructions": "be brief", "max_output_tokens": 20, "temperature": 0}
    answer = client.responses.create(**asked)
    assert answer.status in ("completed", "incomplete")
    with client.responses.stream(**asked) as told:
        text = "".join(event.delta for event in told if event.type == "response.output_text.delta")
    assert text == answer.output_text
    parsed = client.responses.parse(model=model, input="hi", text_format=Painted, max_output_tokens=100)
    assert isinstance(parsed.output_parsed, Painted)


def models() -> None:
    assert [item.id for item in client.models.list()] == [model]
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def errors() -> None:
    for field, value in {"temperature": -1, "max_tokens": 0, "n": 100}.items():
        asked = {key: item for key, item in short.items() if key not in ("temperature", "max_completion_tokens")}
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(**asked, **{field: value})
        assert error.value.param == field


run(
    {
        "chat": chat, "stream": stream, "usage in stream": usage_in_stream, "length": max_tokens,
        "system, developer": developer, "JSON schema": json_schema, "tools auto": tools_auto,
        "tools required": tools_required, "tool results": tool_results, "logprobs": logprobs, "n": several,
        "completions": completions, "embeddings": embeddings, "dimensions": dimensions, "responses": responses,
        "models": models, "errors": errors,
    }
)  # fmt: skip
